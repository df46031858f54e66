"""What an operation belongs to, read from the path that jax gives it."""

import re
from collections.abc import Collection

from jaxllm.targets.hlo import Instruction

# Parts of a path that jax's own machinery adds.
_MACHINERY = re.compile(
    r"(while|body|cond|closed_call|core_call|checkpoint|remat\d*|rematted_computation|shard_map|pallas_call|"
    r"custom_(jvp|vjp)_call(_jaxpr)?|branch_\d+_fun|scan|pjit|.*->.*|)$"
)
_TRANSFORMATION = re.compile(r"(jvp|transpose|vmap|pmap|remat|checkpoint|linearize)\((.*)\)$")


def named_scopes(op_name: str) -> str:
    """Return the `jax.named_scope` names in a path, outermost first, without what jax adds.

    Examples:
      >>> named_scopes("jit(step)/transpose(jvp(layers))/while/body/closed_call/attention/dot_general")
      'layers/attention'
      >>> named_scopes("jit(step)/jvp()/btd,dhk->bthk/dot_general")
      ''
    """
    names = []
    for part in _split(op_name)[:-1]:  # the last is the operation
        while found := _TRANSFORMATION.match(part):
            part = found.group(2)
        if "(" not in part and not _MACHINERY.match(part):
            names.append(part)
    return "/".join(names)


def label_operations(parameter_dims: Collection[tuple[int, ...]] = ()):
    """Return the function that names what an operation's result counts as.

    The groups are "activations" (made by the forward pass), "recomputed" (made again by
    rematerialisation), "gradients" (made by the backward pass, in the shape of a parameter), "backward"
    (anything else it makes), "workspace" (scratch space of a library) and "temporaries"; with
    the named scope after a colon where the program has one.

    Args:
      parameter_dims: shapes of the parameters on one device.
    """
    parameter_dims = set(parameter_dims)

    def label(instruction: Instruction, inherited: str) -> str:
        path = instruction.op_name
        if "/" not in path:  # the compiler's own operation: it works on its operand's behalf
            return inherited or "temporaries"
        group = "temporaries"
        if "transpose(" in path and "jvp" in path:
            dims = {leaf.dims for leaf in instruction.shape.leaves()}
            group = "gradients" if dims <= parameter_dims else "backward"
            if "rematted_computation" in path:
                group = "recomputed"
        elif "jvp(" in path:
            group = "activations"
        scope = named_scopes(path)
        return f"{group}: {scope}" if scope else group

    return label


def argument_label(path: str) -> str:
    """Return what an argument of a training or decoding step counts as, from its path.

    Examples:
      >>> argument_label("state.params['embed']['tokens']"), argument_label("batch['mask']")
      ('parameters', 'batch')
    """
    if re.search(r"opt_state\b", path):
        return "optimizer"
    if re.search(r"\bparams\b", path):
        return "parameters"
    if re.match(r"(batch|tokens)\b", path):
        return "batch"
    if re.search(r"\bcache\b", path):
        return "cache"
    return "state" if path.startswith("state") else "arguments"


def _split(path: str) -> list[str]:
    """Split at the slashes that are not inside parentheses."""
    parts, depth, start = [], 0, 0
    for at, char in enumerate(path):
        depth += (char == "(") - (char == ")")
        if char == "/" and depth == 0:
            parts.append(path[start:at])
            start = at + 1
    return [*parts, path[start:]]
