"""Count the multiply-adds of the matrix products in a compiled program."""

import json
import math
import re

from jaxllm.targets.hlo import Computation, Instruction, Module

_GEMM = re.compile(r'custom_call_target="(__cublas|__cudnn\$conv|__onednn\$matmul)')

_KERNEL = re.compile(r'custom_call_target="(tpu_custom_call|__gpu\$xla\.gpu\.triton|mosaic_gpu[^"]*)"')
# Either form of a declaration; one of 0 FLOPs is one too.
_DECLARED = re.compile(r'"cost_estimate":\{[^}]*"flops":"?(\d+)|kernel_flops="(\d+)"')


def matmul_flops(module: Module, computation: Computation, instruction: Instruction) -> dict[str, float]:
    """Return the FLOPs of one instruction's matrix products, by the type that is multiplied.

    A fusion's are those of what it fuses. A Pallas kernel counts what its author declared
    (`pallas_call(cost_estimate=...)` for a TPU, `jaxllm_kernels.declared_cost` for a GPU), which may hold
    other operations too.
    """
    if instruction.opcode == "dot":
        flops = _dot(computation, instruction)
    elif instruction.opcode == "convolution":
        flops = _convolution(computation, instruction)
    elif instruction.opcode == "custom-call":
        flops = _custom_call(computation, instruction)
    elif instruction.opcode in ("fusion", "async-start") and module.fused(instruction):
        total: dict[str, float] = {}
        inner = module.fused(instruction)
        for each in inner.instructions:
            for dtype, count in matmul_flops(module, inner, each).items():
                total[dtype] = total.get(dtype, 0.0) + count
        return total
    else:
        return {}
    return {_kind(computation, instruction): flops} if flops else {}


def is_silent_kernel(instruction: Instruction) -> bool:
    """Return whether an instruction is a Pallas kernel whose author declared no FLOPs."""
    if instruction.opcode != "custom-call" or not _KERNEL.search(instruction.attributes):
        return False
    return not _DECLARED.search(instruction.attributes)


def _kind(computation, instruction) -> str:
    """Return the key of a target's peak_flops for the type of the left operand."""
    left = computation.by_name.get(instruction.operands[0]) if instruction.operands else None
    dtype = left.shape.dtype if left is not None else "bf16"
    if dtype in ("bf16", "f16"):
        return "bf16"
    return "f32" if dtype in ("f32", "f64") else "int8"


def _dot(computation, dot) -> float:
    left = computation.by_name[dot.operands[0]].shape.dims
    contracted = math.prod(left[d] for d in dot.integers("lhs_contracting_dims"))
    return 2.0 * dot.shape.elements * contracted


def _custom_call(computation, call) -> float:
    if _GEMM.search(call.attributes) and (dims := _config(call, "dot_dimension_numbers")):
        left = computation.by_name[call.operands[0]].shape.dims
        contracted = math.prod(left[int(d)] for d in dims["lhs_contracting_dimensions"])
        return 2.0 * next(call.shape.leaves()).elements * contracted
    declared = _DECLARED.search(call.attributes)
    return float(declared.group(1) or declared.group(2)) if declared else 0.0


def _config(call, key: str) -> dict | None:
    start = call.attributes.find(f'"{key}":')
    if start < 0:
        return None
    return json.JSONDecoder().raw_decode(call.attributes, start + len(key) + 3)[0]


def _convolution(computation, convolution) -> float:
    """Count a convolution, which is what a TPU's compiler makes of a matrix product.

    Batch dimensions become spatial ones whose padding or dilation leaves one valid position each; so
    only pairs of output and window positions that meet a real element of the input count.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.attributes)
    left_labels, right_labels, out_labels = labels.groups()
    left = computation.by_name[convolution.operands[0]].shape.dims
    right = computation.by_name[convolution.operands[1]].shape.dims
    out = convolution.shape.dims
    window = _window(convolution.attributes)
    flops = 2.0 * out[out_labels.index("b")] * out[out_labels.index("f")] * right[right_labels.index("i")]
    for axis in range(len(left_labels) - 2):
        label = str(axis)
        options = {key: values[axis] for key, values in window.items() if axis < len(values)}
        sizes = left[left_labels.index(label)], right[right_labels.index(label)], out[out_labels.index(label)]
        flops *= _valid_pairs(*sizes, options)
    groups = re.search(r"batch_group_count=(\d+)", convolution.attributes)
    return flops / int(groups.group(1)) if groups else flops


def _window(attributes: str) -> dict[str, list[str]]:
    found = re.search(r"window=\{([^}]*)\}", attributes)
    pairs = (item.split("=") for item in (found.group(1).split() if found else ()))
    return {key: value.split("x") for key, value in pairs}


def _valid_pairs(left: int, kernel: int, out: int, options: dict[str, str]) -> int:
    """Count the (output, window) positions of one dimension that meet an element of the input."""
    low = int(options.get("pad", "0_0").split("_")[0])
    stride, spread = int(options.get("stride", 1)), int(options.get("lhs_dilate", 1))
    step = int(options.get("rhs_dilate", 1))
    if kernel == 1 and low == 0 and spread == 1:
        return out
    count = 0
    last = (left - 1) * spread
    for k in range(kernel):
        # Positions p = o * stride + k * step - low with 0 <= p <= last and p a multiple of spread.
        for o in _positions(k * step - low, stride, out, last):
            count += (o * stride + k * step - low) % spread == 0
    return count


def _positions(offset: int, stride: int, out: int, last: int) -> range:
    first = max(0, -(offset // stride))
    return range(first, min(out, (last - offset) // stride + 1) if last >= offset else 0)
