"""Where the copies of tiles lie: transfers, least-recently-used eviction, prefetch and hints."""

from collections import OrderedDict, defaultdict

from jaxllm.errors import UserError
from jaxllm.tiles.machines import HOST, Machine

Key = int | tuple[int, int]  # a handle, or (handle, worker): the worker's own copy that it adds to


class Memory:
    """The copies of every tile, and the times at which they arrive, while a schedule is made.

    A tile may have copies in several memories; a write leaves one. Full memories evict tiles that no
    task needs now: first those that are hinted not to be used, then clean ones (there is another
    copy), then dirty ones, which are written back to the host; the least recently used of each first.
    A tile that was once on the host keeps its place there until it is invalidated.

    What is decided is appended to `actions`: ("copy", key, from, to) and ("drop", key, node).
    """

    def __init__(self, machine: Machine, nbytes: list[int], given: dict[int, int], actions: list):
        self.capacity, self.actions = machine.capacities, actions
        self._nbytes, self._name = nbytes, machine.name
        self._links = {
            pair: (link.channel, link.latency, 1 / link.bandwidth) for pair, link in machine.links.items()
        }
        self._free_at = defaultdict(float)  # of each channel
        nodes = range(len(machine.capacities))
        self.used, self.peak = [0 for _ in nodes], [0 for _ in nodes]
        self._rest: list[OrderedDict] = [OrderedDict() for _ in nodes]  # hinted not to be used
        self._clean: list[OrderedDict] = [OrderedDict() for _ in nodes]
        self._dirty: list[OrderedDict] = [OrderedDict() for _ in nodes]
        self._pins: list[dict] = [defaultdict(int) for _ in nodes]
        self._home: set[Key] = set()
        self.copies: dict[Key, dict[int, float]] = {}  # key: {node: when it is there}
        self.moved = 0  # bytes
        self.evictions = 0
        for handle, node in given.items():
            self.copies[handle] = {node: 0.0}
            if node == HOST:
                self._take_home(handle)
            else:
                self._take(node, nbytes[handle])
                self._touch(handle, node)

    def nbytes(self, key: Key) -> int:
        """Return the bytes of a tile."""
        return self._nbytes[key if type(key) is int else key[0]]

    def transfer_seconds(self, keys, node: int) -> float:
        """Return how long it would take to bring what is missing to a memory, links being free."""
        total = 0.0
        for key in keys:
            copies = self.copies[key]
            if node not in copies:
                source = HOST if HOST in copies else next(iter(copies))
                _, latency, inverse = self._links[source, node]
                total += latency + self._nbytes[key] * inverse
        return total

    def missing_bytes(self, keys, node: int) -> int:
        """Return the bytes that are not in a memory."""
        return sum(self._nbytes[key] for key in keys if node not in self.copies[key])

    def fetch(self, key: Key, node: int, now: float) -> float | None:
        """Bring a tile to a memory and pin it; return when it is there, or None if there is no room."""
        copies = self.copies[key]
        if node not in copies:
            ready = self._make_room(node, self.nbytes(key), now)
            if ready is None:
                return None
            self._copy(key, node, ready)
        self._pins[node][key] += 1
        self._touch(key, node)
        return copies[node]

    def reserve(self, key: Key, node: int, now: float) -> float | None:
        """Make room for a tile that will be written, and pin it; return when there is, or None."""
        copies = self.copies.setdefault(key, {})
        ready = now
        if node not in copies:
            ready = self._make_room(node, self.nbytes(key), now)
            if ready is None:
                return None
            copies[node] = ready
            self._take(node, self.nbytes(key))
            if node == HOST:
                self._home.add(key)
        self._pins[node][key] += 1
        self._touch(key, node)
        return ready

    def scratch(self, nbytes: int, node: int, now: float) -> float | None:
        """Make room for what a task needs while it runs; give it back with a negative number."""
        ready = now if nbytes <= 0 else self._make_room(node, nbytes, now)
        if ready is not None:
            self._take(node, nbytes)
        return ready

    def prefetch(self, key: Key, node: int, now: float) -> None:
        """Bring a tile to a memory if that takes no room from tiles that may be used."""
        if node in self.copies[key]:
            return
        need = self.used[node] + self._nbytes[key] - self.capacity[node]
        if need > 0:
            victims = []
            for victim in self._rest[node]:
                if len(self.copies[victim]) > 1 and victim not in self._pins[node]:
                    need -= self.nbytes(victim)
                    victims.append(victim)
                    if need <= 0:
                        break
            for victim in victims if need <= 0 else ():
                self._evict(victim, node, now)
        if need <= 0:
            self._copy(key, node, now)

    def unpin(self, key: Key, node: int) -> None:
        """Let a tile be evicted again."""
        pins = self._pins[node]
        pins[key] -= 1
        if not pins[key]:
            del pins[key]

    def wrote(self, key: Key, node: int, now: float) -> None:
        """Note that a task wrote a tile: every other copy is stale."""
        copies = self.copies[key]
        for other in [other for other in copies if other != node]:
            self._drop(key, other)
        copies[node] = now
        self._touch(key, node)

    def invalidate(self, key: Key) -> None:
        """Drop every copy and the place on the host."""
        for node in list(self.copies.get(key, ())):
            self._drop(key, node)
        if key in self._home:
            self._home.discard(key)
            self._take(HOST, -self.nbytes(key))

    def wont_use(self, key: Key, now: float) -> None:
        """Write a tile to the host, and let it be the first to be evicted."""
        copies = self.copies[key]
        if HOST not in copies:
            self._copy(key, HOST, now)
        for node in copies:
            if node != HOST:
                self._forget(key, node)
                self._rest[node][key] = None

    def _copy(self, key: Key, node: int, ready: float) -> None:
        """Start a transfer from where it arrives first."""
        copies, nbytes = self.copies[key], self.nbytes(key)
        best = None
        for source, there in copies.items():
            channel, latency, inverse = self._links[source, node]
            start = max(ready, there, self._free_at[channel])
            end = start + latency + nbytes * inverse
            if best is None or end < best[0]:
                best = (end, channel, source)
        end, channel, source = best
        self._free_at[channel] = end
        self.moved += nbytes
        copies[node] = end
        if node == HOST:
            self._take_home(key)
        else:
            self._take(node, nbytes)
        self.actions.append(("copy", key, source, node))
        for place in copies:  # there are two: each is clean
            if place != HOST and key not in self._rest[place]:
                self._touch(key, place)

    def _make_room(self, node: int, nbytes: int, now: float) -> float | None:
        ready = now
        while self.used[node] + nbytes > self.capacity[node]:
            if node == HOST:
                raise UserError(
                    f"the host's {self.capacity[HOST] / 1e9:.4g} GB of {self._name} are full; use a machine "
                    "with more memory, a smaller model or a smaller batch"
                )
            victim = self._victim(node)
            if victim is None:
                return None
            ready = max(ready, self._evict(victim, node, now))
        return ready

    def _victim(self, node: int) -> Key | None:
        pins = self._pins[node]
        for queue in (self._rest[node], self._clean[node], self._dirty[node]):
            for key in queue:
                if key not in pins:
                    return key
        return None

    def _evict(self, key: Key, node: int, now: float) -> float:
        """Drop a copy, written back if it is the only one; return when its room is free."""
        copies = self.copies[key]
        self.evictions += 1
        ready = now
        if len(copies) == 1:
            self._copy(key, HOST, now)
            ready = copies[HOST]
        self._drop(key, node)
        if len(copies) == 1 and HOST not in copies:
            self._touch(key, next(iter(copies)), use=False)
        return ready

    def _drop(self, key: Key, node: int) -> None:
        del self.copies[key][node]
        self.actions.append(("drop", key, node))
        if node != HOST:
            self._forget(key, node)
            self._take(node, -self.nbytes(key))

    def _touch(self, key: Key, node: int, use: bool = True) -> None:
        """Put a copy at the end of the queue that it belongs to."""
        if node == HOST:
            return
        self._forget(key, node)
        queue = self._clean if len(self.copies[key]) > 1 else self._dirty
        queue[node][key] = None
        if not use:
            queue[node].move_to_end(key, last=False)

    def _forget(self, key: Key, node: int) -> None:
        for queue in (self._rest, self._clean, self._dirty):
            queue[node].pop(key, None)

    def _take_home(self, key: Key) -> None:
        if key not in self._home:
            self._make_room(HOST, self.nbytes(key), 0.0)
            self._home.add(key)
            self._take(HOST, self.nbytes(key))

    def _take(self, node: int, nbytes: int) -> None:
        self.used[node] += nbytes
        self.peak[node] = max(self.peak[node], self.used[node])
