"""Count what a compiled program moves: bytes to and from memory, bytes over the network."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxllm.targets.hlo import HBM, HOST, Computation, Instruction, Module, Shape

# Operations that name, group or await values and move nothing themselves.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional",
    "after-all", "opt-barrier", "optimization-barrier", "partition-id", "replica-id", "iota", "domain",
    "add-dependency",
}  # fmt: skip
_SLICES = ("dynamic-slice", "slice", "gather")


def hbm_bytes(module: Module, computation: Computation, instruction: Instruction) -> int:
    """Return the bytes that one instruction reads from and writes to a device's main memory.

    What lies in a TPU's vector memory is free. A slice of a larger array (a layer's weights, of the
    stack that a loop walks over) counts as the slice, and an update in place as the update, inside a
    fusion too.
    """
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith(("-done", "-update")):
        return 0
    operands = [computation.by_name[name] for name in instruction.operands if name in computation.by_name]
    if opcode in _SLICES:
        return 2 * instruction.shape.bytes_in(HBM) + sum(o.shape.bytes_in(HBM) for o in operands[1:])
    if opcode == "dynamic-update-slice":
        return _of(operands[1].shape, instruction.shape) + operands[1].shape.bytes_in(HBM)
    if opcode == "scatter":
        return 3 * sum(o.shape.bytes_in(HBM) for o in operands[len(operands) // 2 :])
    inner = module.fused(instruction)
    if inner is not None and opcode in ("fusion", "async-start"):
        written = instruction.shape if opcode == "fusion" else inner.root.shape
        return _written(inner, written) + sum(
            _read(module, inner, number, operand.shape) for number, operand in enumerate(operands)
        )
    read = sum(o.shape.bytes_in(HBM) for o in dict.fromkeys(operands) if o.opcode != "constant")
    parts = instruction.shape.parts or (instruction.shape,)
    if opcode == "slice-start":  # ((what it is a part of), the part, a flag)
        return _of(parts[1], operands[0].shape) + parts[1].bytes_in(HBM)
    if opcode == "copy-start":  # (what is written, what is read, a flag)
        return read + parts[0].bytes_in(HBM)
    if opcode.endswith("-start") and len(parts) > 1:  # (what is read, what is written, flags)
        return read + parts[1].bytes_in(HBM)
    if opcode == "custom-call" and "__cublas" in instruction.attributes:  # (the product, scratch space)
        return read + next(instruction.shape.leaves()).bytes
    return read + instruction.shape.bytes_in(HBM)


def _of(part: Shape, whole: Shape) -> int:
    """Return the bytes of a part of an array, if the array lies in main memory."""
    return sum(leaf.bytes for leaf in part.leaves()) if whole.space == HBM else 0


def _read(module, inner, number: int, shape: Shape) -> int:
    """Return what a fusion reads of its operand: all of it, unless all its uses are slices or updates."""
    whole = shape.bytes_in(HBM)
    parameter = inner.parameters.get(number)
    if parameter is None or whole == 0:
        return whole
    total = 0
    for user in _through_bitcasts(inner, parameter):
        nested = module.fused(user) if user.opcode == "fusion" else None
        if user.opcode in _SLICES and inner.by_name[user.operands[0]] in _same(inner, parameter):
            total += sum(leaf.bytes for leaf in user.shape.leaves())
        elif user.opcode == "dynamic-update-slice" and inner.by_name[user.operands[0]] in _same(
            inner, parameter
        ):
            continue  # written in place, not read
        elif nested is not None:
            total += sum(
                _read(module, nested, n, shape)
                for n, name in enumerate(user.operands)
                if inner.by_name[name] in _same(inner, parameter)
            )
        else:
            return whole
    return min(total, whole)


def _same(inner, parameter) -> list[Instruction]:
    """Return a parameter and what only renames it."""
    same = [parameter]
    for instruction in same:
        same.extend(u for u in inner.users[instruction.name] if u.opcode == "bitcast")
    return same


def _through_bitcasts(inner, parameter) -> list[Instruction]:
    return [u for i in _same(inner, parameter) for u in inner.users[i.name] if u.opcode != "bitcast"]


def _written(inner, shape: Shape) -> int:
    """Return what a fusion writes: of an array updated in place, the update."""
    root = inner.root
    roots = [inner.by_name[name] for name in root.operands] if root.opcode == "tuple" else [root]
    total = 0
    for one, leaf in zip(roots, shape.leaves(), strict=False):
        while one.opcode == "bitcast":
            one = inner.by_name[one.operands[0]]
        if one.opcode == "dynamic-update-slice":
            total += _of(inner.by_name[one.operands[1]].shape, leaf)
        elif leaf.space == HBM:
            total += leaf.bytes
    return total


class HostTransfer(NamedTuple):
    """A copy between a device and its host's memory."""

    bytes: int
    window: range  # positions of the operations that may run meanwhile; empty: the device waits


def host_transfers(module: Module, computation: Computation) -> Iterator[HostTransfer]:
    """Yield the copies between a device's memory and its host's of one computation, in order.

    Args:
      module: the program.
      computation: one of its scheduled computations.
    """
    for position, instruction in enumerate(computation.instructions):
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith(("-done", "-update")):
            continue
        operands = [computation.by_name[name].shape for name in instruction.operands]
        size = _crossing(instruction.shape, operands, opcode)
        if size:
            yield HostTransfer(size, _until_done(computation, position))


def _crossing(result: Shape, operands: list[Shape], opcode: str) -> int:
    """Return the bytes that cross between memories: those of the device's side."""
    results = [result] if result.parts is None else list(result.parts)
    if opcode == "copy-start":
        results = results[:1]
    elif opcode.endswith("-start"):  # (what is read, what is written, flags)
        results = results[1:2]
    written = [leaf for shape in results for leaf in shape.leaves()]
    read = [leaf for shape in operands for leaf in shape.leaves()]
    filled = [shape.bytes for shape in written if shape.space == HBM]
    given = [shape.bytes for shape in read if shape.space == HBM]
    if filled and any(shape.space == HOST for shape in read):  # a copy, or a slice of an array of the host
        return sum(filled)
    if given and any(shape.space == HOST for shape in written):  # a copy, or an update; indices are scalars
        return max(given)
    return 0


_COLLECTIVES = re.compile(
    r"(all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|"
    r"collective-broadcast)(-start)?$"
)


class Collective(NamedTuple):
    """A sum, gather or exchange of one computation."""

    kind: str
    sent: float  # bytes, by each device
    groups: list[list[int]]  # of devices
    window: range  # positions of the operations that may run meanwhile; empty: the device waits


def collectives(module: Module, computation: Computation) -> Iterator[Collective]:
    """Yield the collectives of one computation, in order.

    Bytes are those of a ring, which no algorithm beats for large arrays: with n devices an all-gather,
    a reduce-scatter or an all-to-all of s bytes sends s (n-1)/n, an all-reduce twice that, a permutation s.

    Args:
      module: the program.
      computation: one of its scheduled computations.
    """
    found = []  # (position, instruction, the computation it is in, its chain)
    chains: dict[str, list[int]] = {}  # a TPU spreads one collective over several fusions
    for position, outer in enumerate(computation.instructions):
        for instruction, inside in _with_fused(module, computation, outer):
            if not _COLLECTIVES.match(instruction.opcode):
                continue
            chain = re.search(r'chain_id="(\d+)"', instruction.attributes)
            chain = chain.group(1) if chain else ""
            if chain and chain in chains:
                chains[chain].append(position)
                continue
            chains[chain] = [position]
            found.append((position, instruction, inside, chain))
    for position, instruction, inside, chain in found:
        groups = device_groups(instruction.attributes)
        # A TPU's reduce-scatter is a kernel whose text is an all-reduce and the cut.
        kind = _COLLECTIVES.match(instruction.opcode).group(1)
        kind = "reduce-scatter" if "all-reduce-scatter" in inside.name else kind
        read = sum(
            leaf.bytes for name in instruction.operands for leaf in inside.by_name[name].shape.leaves()
        )
        window = range(position + 1, chains[chain][-1]) if chain else _until_done(computation, position)
        yield Collective(kind, _sent(kind, read, groups), groups, window)


def _until_done(computation, position: int) -> range:
    """Return the positions between the start of an asynchronous operation and its end."""
    start = computation.instructions[position]
    if not start.opcode.endswith("-start"):
        return range(0)
    ends = {user.name for user in computation.users[start.name]}
    later = range(position + 1, len(computation.instructions))
    return range(position + 1, next((n for n in later if computation.instructions[n].name in ends), position))


def _with_fused(module, computation, instruction):
    yield instruction, computation
    inner = module.fused(instruction)
    if inner is not None:
        for each in inner.instructions:
            yield from _with_fused(module, inner, each)


def _sent(kind: str, read: int, groups: list[list[int]]) -> float:
    n = max((len(group) for group in groups), default=1)
    if kind == "collective-permute":
        return float(read)
    if kind == "all-gather":
        return float(read) * (n - 1)
    return float(read) * (n - 1) / n * (2 if kind == "all-reduce" else 1)


def device_groups(attributes: str) -> list[list[int]]:
    """Return which devices communicate, in any of the forms that HLO writes.

    Examples:
      >>> device_groups("replica_groups={{0,1},{2,3}}")
      [[0, 1], [2, 3]]
      >>> device_groups("replica_groups=[2,2]<=[2,2]T(1,0)")
      [[0, 2], [1, 3]]
      >>> device_groups("replica_groups=mesh['a'=2,'b'=2] {'a'}")
      [[0, 2], [1, 3]]
    """
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", attributes)
    if pairs:
        return [[int(a), int(b)] for a, b in re.findall(r"\{(\d+),(\d+)", pairs.group(1) + "}")]
    listed = re.search(r"replica_groups=\{(\{.*?\})\}", attributes)
    if listed:
        return [[int(n) for n in g.split(",") if n] for g in re.findall(r"\{([\d,]*)\}", listed.group(1))]
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        return _iota(iota.group(2), iota.group(3)).reshape(_integers(iota.group(1))).tolist()
    mesh = re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? "
                     r"\{(.*?)\}", attributes)  # fmt: skip
    if mesh:
        return _mesh_groups(*mesh.groups())
    return []


def _mesh_groups(axes: str, device_dims: str | None, transpose: str | None, along: str) -> list[list[int]]:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", axes)}
    ids = np.arange(int(np.prod(list(sizes.values()))))
    if device_dims:
        ids = _iota(device_dims, transpose)
    # A part of an axis, 'name':(before)size, splits it in three.
    split: list[tuple[str, int, bool]] = []
    chosen = re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", along)
    for name, size in sizes.items():
        parts = sorted((int(b), int(s)) for n, b, s in chosen if n == name and b)
        if parts:
            done = 1
            for before, part in parts:
                split += [(name, before // done, False), (name, part, True)]
                done = before * part
            split.append((name, size // done, False))
        else:
            split.append((name, size, any(n == name for n, _, _ in chosen)))
    grid = ids.reshape([size for _, size, _ in split])
    inside = [i for i, part in enumerate(split) if part[2]]
    outside = [i for i, part in enumerate(split) if not part[2]]
    width = int(np.prod([grid.shape[i] for i in inside]))
    return grid.transpose(outside + inside).reshape(-1, width).tolist()


def _iota(dims: str, transpose: str | None) -> np.ndarray:
    ids = np.arange(int(np.prod(_integers(dims)))).reshape(_integers(dims))
    return (ids.transpose(_integers(transpose)) if transpose else ids).reshape(-1)


def _integers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def mesh_axes(groups: list[list[int]], axis_sizes: dict[str, int]) -> str:
    """Return the axes along which the devices of a group differ, joined by "+".

    Args:
      groups: device groups, as positions in the mesh's flat order.
      axis_sizes: the mesh's axes in order.

    Examples:
      >>> mesh_axes([[0, 1], [2, 3]], {"data": 2, "fsdp": 2, "tensor": 1})
      'fsdp'
    """
    names, sizes = list(axis_sizes), list(axis_sizes.values())
    differing: set[str] = set()
    for group in groups or [list(range(int(np.prod(sizes))))]:
        coordinates = np.stack(np.unravel_index(np.asarray(group), sizes))
        differing |= {name for name, row in zip(names, coordinates, strict=True) if len(set(row)) > 1}
    return "+".join(name for name in names if name in differing) or "none"
