"""Simulate which arrays are alive at each point of a compiled program, and what they belong to."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from jaxllm.targets.hlo import HBM, Computation, Instruction, Module, Shape

# Operations whose result is an operand under another name.
_RENAMES = ("bitcast", "opt-barrier", "optimization-barrier", "add-dependency", "domain", "async-update")


@dataclass(eq=False)
class Buffer:
    """Some bytes of main memory, from the operation that fills them to the last that reads them."""

    bytes: int
    label: str
    last_use: int = -1


@dataclass(frozen=True)
class Moment:
    """What is alive while one operation runs, besides the program's arguments and outputs."""

    operation: str
    live: dict[str, int]  # label -> bytes

    @property
    def bytes(self) -> int:
        """All of it."""
        return sum(self.live.values())


@dataclass
class _Run:
    """One computation's simulation in progress."""

    module: Module
    label: Callable[[Instruction, str], str]
    moments: list[Moment] = field(default_factory=list)


def simulate(module: Module, label: Callable[[Instruction, str], str]) -> list[Moment]:
    """Return the temporaries that are alive at each operation, in the order of the schedule.

    A loop's body appears once: each pass needs the same. Arguments and outputs are not among them: they
    have memory of their own for the whole program, or share it where an argument is donated.

    Args:
      module: a scheduled module.
      label: (instruction, the label of its first operand or "") -> what its result counts as.
    """
    run = _Run(module, label)
    arguments = {n: _nothing(p.shape) for n, p in module.entry.parameters.items()}
    _simulate(run, module.entry, arguments, base={})
    return run.moments


def _simulate(run: _Run, computation: Computation, arguments: dict[int, object], base: dict[str, int]):
    """Walk one computation on top of what its callers keep alive; return the value of its root.

    A value is a Buffer, None for bytes that are counted elsewhere (arguments, outputs, a loop's
    state), or a list of values for a tuple.
    """
    values: dict[str, object] = {}
    own = _root_names(computation)
    for position, instruction in enumerate(computation.instructions):
        values[instruction.name] = _value(run, computation, instruction, values, arguments, own)
        if instruction.opcode in ("tuple", "get-tuple-element", *_RENAMES):
            continue  # names its operand, reads nothing
        for name in (instruction.name, *instruction.operands):
            for buffer in _buffers(values.get(name)):
                buffer.last_use = position
    _share(run, computation, values)

    # Second walk, now that the last uses are known: what is alive when.
    live: dict[Buffer, None] = {}
    for position, instruction in enumerate(computation.instructions):
        for buffer in _buffers(values[instruction.name]):
            if buffer.last_use >= position and buffer.bytes:
                live[buffer] = None
        totals = dict(base)
        for buffer in live:
            totals[buffer.label] = totals.get(buffer.label, 0) + buffer.bytes
        if instruction.opcode in ("while", "call", "conditional"):
            for called, given in _calls(run, instruction, values):
                _simulate(run, called, given, totals)
        elif instruction.opcode not in ("parameter", "constant", "get-tuple-element", "tuple", *_RENAMES):
            run.moments.append(Moment(instruction.op_name or instruction.name, totals))
        for buffer in [b for b in live if b.last_use <= position]:
            del live[buffer]


def _value(run, computation, instruction, values, arguments, own):
    opcode, operands = instruction.opcode, [values.get(name) for name in instruction.operands]
    if opcode == "parameter":
        return arguments[int(instruction.inside)]
    if opcode == "get-tuple-element":
        index = int(re.search(r"index=(\d+)", instruction.attributes).group(1))
        return operands[0][index] if isinstance(operands[0], list) else None
    if opcode == "tuple":
        return operands
    if opcode == "while":
        _name_loop_state(run, instruction, operands[0])
        return operands[0]
    if opcode in _RENAMES:
        return operands[0]
    if opcode == "constant":
        return _nothing(instruction.shape)
    if opcode.endswith("-done"):
        started = operands[0]
        if not isinstance(started, list):
            return started
        if opcode == "all-reduce-done" or instruction.shape.parts is not None and len(started) == len(
            instruction.shape.parts
        ):
            return started
        return started[0 if opcode == "copy-done" else 1]
    if instruction.name in own:
        return _nothing(instruction.shape)
    inherited = next((b.label for o in operands for b in _buffers(o)), "")
    label = run.label(instruction if inherited else _named(computation, instruction), inherited)
    if opcode.endswith("-start") and instruction.shape.parts is not None:
        parts = [_new(part, label) for part in instruction.shape.parts]
        if opcode == "copy-start":
            parts[1] = operands[0]
        elif opcode != "all-reduce-start" and len(parts) > 1:
            parts[0] = operands if len(operands) > 1 else operands[0]
        return parts
    aliased = re.findall(r"\{([\d, ]*)\}: \((\d+), \{[\d, ]*\}", _aliasing(instruction))
    value = _new(instruction.shape, label)
    if opcode == "custom-call" and "__cublas" in instruction.attributes and isinstance(value, list):
        value[-1].label = "workspace"  # (the product, scratch space)
    for index, operand in aliased:
        if not index.strip():
            value = operands[int(operand)]
        elif isinstance(value, list):
            value[int(index.split(",")[0])] = operands[int(operand)]
    return value


def _named(computation, instruction) -> Instruction:
    """Return the instruction, or where the compiler made it without a name, the first that uses it."""
    for _ in range(3):
        users = computation.users[instruction.name]
        if "/" in instruction.op_name or not users:
            break
        instruction = users[0]
    return instruction


def _name_loop_state(run, loop, state) -> None:
    """Label what a loop fills (a stack of saved activations starts as zeros) by what its body writes."""
    body = run.module.computations[loop.called("body")]
    if not isinstance(state, list) or body.root.opcode != "tuple":
        return
    for value, name in zip(state, body.root.operands, strict=True):
        writer = body.by_name[name]
        while writer.opcode in _RENAMES or writer.opcode == "get-tuple-element" and not writer.op_name:
            writer = body.by_name[writer.operands[0]]
        source = body.by_name[writer.operands[0]] if writer.opcode == "get-tuple-element" else writer
        if isinstance(value, Buffer) and source.opcode != "parameter":
            value.label = run.label(writer, value.label)


def _aliasing(instruction) -> str:
    start = instruction.attributes.find("output_to_operand_aliasing={")
    return instruction.attributes[start : instruction.attributes.find("}}", start)] if start >= 0 else ""


def _new(shape: Shape, label: str):
    if shape.parts is not None:
        return [_new(part, label) for part in shape.parts]
    return Buffer(shape.bytes, label) if shape.space == HBM and shape.bytes else None


def _nothing(shape: Shape):
    return None if shape.parts is None else [_nothing(part) for part in shape.parts]


def _buffers(value) -> list[Buffer]:
    if isinstance(value, list):
        return [buffer for part in value for buffer in _buffers(part)]
    return [] if value is None else [value]


def _root_names(computation: Computation) -> set[str]:
    """Return the instructions whose results are the computation's: their memory is its caller's."""
    names, pending = set(), [computation.root.name]
    while pending:
        name = pending.pop()
        instruction = computation.by_name.get(name)
        if instruction is None or name in names:
            continue
        if instruction.opcode in ("tuple", "get-tuple-element", *_RENAMES) or (
            instruction.opcode.endswith("-done")
        ):
            pending.extend(instruction.operands)
        elif instruction.opcode not in ("while", "parameter") and not instruction.opcode.endswith("-start"):
            names.add(name)
    return names


def _share(run: _Run, computation: Computation, values) -> None:
    """Let results take the memory of operands that end where they begin, as the compilers do.

    A TPU's text says which operand; elsewhere an elementwise result or an update in place takes that
    of an operand of its size.
    """
    for position, instruction in enumerate(computation.instructions):
        made = values[instruction.name]
        if not isinstance(made, Buffer) or not _may_share(run.module, instruction):
            continue
        for name in instruction.operands:
            old = values.get(name)
            if (
                isinstance(old, Buffer)
                and old is not made
                and old.bytes == made.bytes
                and old.last_use == position
            ):
                # The bytes pass to the result: the operand ends just before.
                old.last_use = position - 1
                break


def _may_share(module: Module, instruction: Instruction) -> bool:
    if '"aliasing_operands"' in instruction.attributes:
        return '"indices"' in instruction.attributes
    if instruction.opcode == "fusion":
        inner = module.fused(instruction)
        return "kind=kLoop" in instruction.attributes or (
            inner is not None and inner.root.opcode in ("dynamic-update-slice", "scatter")
        )
    return instruction.opcode not in (
        "copy", "copy-start", "dot", "convolution", "custom-call", "transpose", "reduce", "gather",
        "concatenate", "pad", "reverse", "sort", "reshape", "broadcast", "slice", "dynamic-slice",
    )  # fmt: skip


def _calls(run: _Run, instruction: Instruction, values):
    """Yield the computations an instruction runs, with the values of their parameters."""
    module = run.module
    if instruction.opcode == "while":
        yield module.computations[instruction.called("body")], {0: _empty(values[instruction.operands[0]])}
    elif instruction.opcode == "call":
        called = module.computations[instruction.called("to_apply")]
        yield called, {n: _empty(values[name]) for n, name in enumerate(instruction.operands)}
    else:
        for name, operand in zip(instruction.branches, instruction.operands[1:], strict=False):
            yield module.computations[name], {0: _empty(values[operand])}


def _empty(value):
    """Return the shape of a value with its bytes left to the caller, who keeps them alive."""
    return [_empty(part) for part in value] if isinstance(value, list) else None
