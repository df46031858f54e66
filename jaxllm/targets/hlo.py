"""Read the text of a compiled, scheduled HLO module."""

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
# Where an array lies is in its layout, S(n): 0 (not printed) is the device's main memory, 5 the host's; the
# others are on the chip (vector memory, flags, scalars) and hold nothing that counts against HBM.
HBM, HOST = 0, 5


@dataclass(frozen=True)
class Shape:
    """An array's type and where it lies, or a tuple of such."""

    dtype: str = ""
    dims: tuple[int, ...] = ()
    bytes: int = 0  # as laid out, a TPU's padding to tiles included
    space: int = HBM
    parts: tuple["Shape", ...] | None = None  # of a tuple

    def leaves(self) -> Iterator["Shape"]:
        """Yield the arrays of a tuple, or the array itself."""
        if self.parts is None:
            yield self
        else:
            for part in self.parts:
                yield from part.leaves()

    @property
    def elements(self) -> int:
        """Count the numbers in the array."""
        return math.prod(self.dims)

    def bytes_in(self, space: int = HBM) -> int:
        """Return the bytes that lie in one memory, over all arrays of a tuple."""
        return sum(leaf.bytes for leaf in self.leaves() if leaf.space == space)


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    shape: Shape
    opcode: str
    operands: tuple[str, ...]
    inside: str  # what stands between the parentheses: a constant's value, a parameter's number
    attributes: str  # the rest of the line
    is_root: bool

    @functools.cached_property
    def op_name(self) -> str:
        """The path of jax transformations and named scopes that the instruction comes from."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return found.group(1).replace("\\'", "'") if found else ""

    def called(self, attribute: str) -> str | None:
        """Return the computation that an attribute (body, condition, calls, to_apply) names."""
        found = re.search(rf"\b{attribute}=%([\w.\-]+)", self.attributes)
        return found.group(1) if found else None

    @functools.cached_property
    def branches(self) -> tuple[str, ...]:
        """The computations of a conditional."""
        found = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        if found:
            return tuple(re.findall(r"%([\w.\-]+)", found.group(1)))
        both = (self.called("true_computation"), self.called("false_computation"))
        return tuple(name for name in both if name)

    def integers(self, attribute: str) -> tuple[int, ...]:
        """Return the numbers of an attribute such as lhs_contracting_dims={1,2}."""
        found = re.search(rf"\b{attribute}=\{{([\d,]*)\}}", self.attributes)
        return tuple(int(n) for n in found.group(1).split(",") if n) if found else ()


@dataclass
class Computation:
    """Instructions, in the order in which they run if the module is scheduled."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        """The instructions by name."""
        return {i.name: i for i in self.instructions}

    @functools.cached_property
    def root(self) -> Instruction:
        """The instruction whose value the computation returns."""
        return next((i for i in self.instructions if i.is_root), self.instructions[-1])

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        """The parameters by number."""
        return {int(i.inside): i for i in self.instructions if i.opcode == "parameter"}

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that read each instruction's value."""
        users: dict[str, list[Instruction]] = {i.name: [] for i in self.instructions}
        for instruction in self.instructions:
            for operand in dict.fromkeys(instruction.operands):
                users.setdefault(operand, []).append(instruction)
        return users


@dataclass(frozen=True)
class Module:
    """A program for one device."""

    computations: dict[str, Computation]
    entry: Computation
    header: str

    @functools.cached_property
    def donated(self) -> dict[tuple[int, ...], int]:
        """The outputs that take a parameter's memory: index in the output -> parameter number."""
        pairs = re.findall(r"\{([\d, ]*)\}: \((\d+), \{[\d, ]*\}", self.header)
        return {tuple(int(n) for n in index.split(",") if n.strip()): int(p) for index, p in pairs}

    def trip_count(self, loop: Instruction) -> int:
        """Return how often a while loop's body runs; 1 where the text does not tell."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known.group(1))
        condition = self.computations[loop.called("condition")]
        bounds = [
            int(i.inside)
            for i in condition.instructions
            if i.opcode == "constant" and re.fullmatch(r"-?\d+", i.inside)
        ]
        compares = [i for i in self._reachable(condition) if i.opcode == "compare"]
        if len(bounds) != 1 or len(compares) != 1:
            return 1
        # jax's scans count up from 0 by 1.
        return max(bounds[0] + ("direction=LE" in compares[0].attributes), 0)

    def scheduled(self) -> Iterator[tuple[Computation, int]]:
        """Yield every computation that is a sequence of operations, and how often it runs in all."""
        yield from self._scheduled(self.entry, 1)

    def fused(self, instruction: Instruction) -> Computation | None:
        """Return the computation that a fusion, or an operation wrapped to run on its own, computes."""
        name = instruction.called("calls")
        return self.computations.get(name) if name else None

    def _scheduled(self, computation, times):
        yield computation, times
        for i in computation.instructions:
            if i.opcode == "while":
                trips = times * self.trip_count(i)
                yield from self._scheduled(self.computations[i.called("body")], trips)
            elif i.opcode == "call":
                yield from self._scheduled(self.computations[i.called("to_apply")], times)
            elif i.opcode == "conditional":
                # Either branch may run; the first is as good a guess as any.
                yield from self._scheduled(self.computations[i.branches[0]], times)

    def _reachable(self, computation):
        for i in computation.instructions:
            yield i
            for name in (i.called("calls"), i.called("to_apply")):
                if name in self.computations:
                    yield from self._reachable(self.computations[name])


def parse(text: str) -> Module:
    """Read what `compiled.as_text()` gives.

    Examples:
      >>> module = parse('''HloModule m, is_scheduled=true
      ... ENTRY %main (p: f32[8]) -> f32[8] {
      ...   %p = f32[8]{0} parameter(0)
      ...   ROOT %add.1 = f32[8]{0} add(%p, %p), metadata={op_name="jit(f)/add"}
      ... }''')
      >>> module.entry.root.opcode, module.entry.root.op_name, module.entry.root.shape.bytes
      ('add', 'jit(f)/add', 32)
    """
    lines = text.splitlines()
    computations: dict[str, Computation] = {}
    entry = current = None
    for line in lines[1:]:
        if current is not None and line.startswith("}"):
            current = None
        elif current is not None:
            instruction = _instruction(line)
            if instruction is not None:
                current.instructions.append(instruction)
        elif line.endswith("{") and (start := re.match(r"(ENTRY )?%?([\w.\-]+) \(", line)):
            current = computations[start.group(2)] = Computation(start.group(2))
            entry = current if start.group(1) else entry
    assert entry is not None, "the text holds no ENTRY computation"
    return Module(computations, entry, lines[0])


_START = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")


def _instruction(line: str) -> Instruction | None:
    start = _START.match(line)
    if start is None:
        return None
    at = start.end()
    end = _closing(line, at) + 1 if line[at] == "(" else line.index(" ", at)
    opcode = _OPCODE.match(line, end)
    close = _closing(line, opcode.end() - 1)
    inside = line[opcode.end() : close]
    return Instruction(
        name=start.group(2),
        shape=_shape(line[at:end]),
        opcode=opcode.group(1),
        operands=tuple(re.findall(r"%([\w.\-]+)", inside)),
        inside=inside,
        attributes=line[close + 1 :],
        is_root=start.group(1) is not None,
    )


_PARENTHESIS = re.compile(r"[()]")


def _closing(text: str, start: int) -> int:
    """Return where the parenthesis that opens at `start` closes."""
    depth = 0
    for found in _PARENTHESIS.finditer(text, start):
        depth += 1 if found.group() == "(" else -1
        if depth == 0:
            return found.start()
    return len(text)


_ARRAY = re.compile(r"([a-z]\w*)\[([^\]]*)\](?:\{([^}]*)\})?")


@functools.lru_cache(maxsize=10_000)
def _shape(text: str) -> Shape:
    if not text.startswith("("):
        found = _ARRAY.match(text)
        return _array(*found.groups()) if found else Shape()
    parts, depth, start = [], 0, 1
    text = re.sub(r"/\*.*?\*/", "", text)
    for at, char in enumerate(text):
        if char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        if (char == "," and depth == 1) or (depth == 0 and at > start):
            parts.append(_shape(text[start:at].strip()))
            start = at + 1
    return Shape(parts=tuple(parts))


def _array(dtype: str, dims: str, layout: str | None) -> Shape:
    sizes = tuple(int(d.strip("<= ")) for d in dims.split(",") if d)
    order, _, tiling = (layout or "").partition(":")
    space = re.search(r"S\((\d+)\)", tiling)
    physical = [sizes[int(d)] for d in reversed(order.split(",")) if d] if order else list(sizes)
    tile = re.search(r"T\(([\d,]+)\)", tiling)
    if tile:
        # The innermost dimensions are cut into tiles; the last tile of each is padded.
        sides = [int(s) for s in tile.group(1).split(",")]
        physical = [1] * (len(sides) - len(physical)) + physical
        for back, side in enumerate(reversed(sides), start=1):
            physical[-back] = -(-physical[-back] // side) * side
    bits = _BITS.get(dtype) if dtype in _BITS else int(re.search(r"\d+", dtype).group())
    element = re.search(r"E\((\d+)\)", tiling)
    bits = int(element.group(1)) if element else bits
    number = math.prod(physical) * bits
    return Shape(dtype, sizes, -(-number // 8), int(space.group(1)) if space else HBM)
