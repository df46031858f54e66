"""Compile a function for a target and forecast its memory and time."""

import inspect
import math
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding

from jaxllm import parallel
from jaxllm.errors import UserError
from jaxllm.targets import hlo, memory
from jaxllm.targets.catalog import Target, get_target
from jaxllm.targets.cost import count_work
from jaxllm.targets.forecast import Forecast
from jaxllm.targets.scopes import argument_label, label_operations
from jaxllm.targets.topology import compiler_options, devices

_TIMELINE_LENGTH = 400  # points that a forecast keeps of the timeline: more than a picture shows


def mesh(config: parallel.MeshConfig, target: Target | str) -> Mesh:
    """Return a mesh over a target's devices, with the axes that jaxllm's rules name.

    Raises:
      UserError: the axis sizes do not multiply to the target's devices, or its compiler is missing.
    """
    return parallel.make_mesh(config, devices(target))


def compile(
    fn: Callable,
    args: Sequence[Any],
    target: Target | str,
    *,
    donate: int | tuple[int, ...] = (),
    labels: Callable[[str], str] = argument_label,
    model_flops: float = 0.0,
) -> Forecast:
    """Compile `fn(*args)` for a target and return what the compiler's result says.

    Args:
      fn: a function, or one that is jitted already (which then decides what is donated).
      args: pytrees of `jax.ShapeDtypeStruct`, with shardings on `devices(target)`. One without lies on the
        first device.
      target: the machine, or its name.
      donate: positions of the arguments whose memory the results may take.
      labels: path of an argument, such as "params['embed']", -> its line in the breakdown.
      model_flops: matrix-product FLOPs that one device's part of the work has by definition, for the MFU.

    Raises:
      UserError: the target's compiler is missing, or a shape cannot be sharded as asked.

    Examples:
      >>> x = jax.ShapeDtypeStruct((64, 64), "float32")
      >>> forecast = compile(lambda x: x @ x, [x], "cpu")
      >>> forecast.flops, forecast.fits
      ({'f32': 524288.0}, True)
    """
    target = get_target(target)
    first = devices(target)[0]
    args = jax.tree.map(lambda x: _placed(x, first), tuple(args))
    jitted = fn if hasattr(fn, "lower") else jax.jit(fn, donate_argnums=donate)
    name = getattr(fn, "__name__", "function")
    _check_split(args, name)
    started = time.perf_counter()
    lowered = jitted.lower(*args)
    try:
        compiled = lowered.compile(compiler_options=compiler_options(target) or None)
    except jax.errors.JaxRuntimeError as error:
        needed = _needed_bytes(error)
        if needed is None:
            raise
        arguments = _argument_bytes(fn, args, labels)
        seconds = time.perf_counter() - started
        return _too_big(target, name, arguments, needed, _sentence(error), model_flops, seconds)
    seconds = time.perf_counter() - started
    return _forecast(compiled, target, name, _axis_sizes(args), labels, model_flops, seconds)


def _placed(shape, device) -> jax.ShapeDtypeStruct:
    sharding = getattr(shape, "sharding", None) or SingleDeviceSharding(device)
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _check_split(args, name: str) -> None:
    for leaf in jax.tree.leaves(args):
        try:
            leaf.sharding.shard_shape(leaf.shape)
        except ValueError as error:
            sizes = getattr(getattr(leaf.sharding, "mesh", None), "shape", {})
            mesh = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
            spec = tuple(getattr(leaf.sharding, "spec", ()))
            raise UserError(
                f"{name}: an argument of shape {leaf.shape} cannot be split as {spec} over the mesh {mesh}; "
                "choose sizes that the mesh divides"
            ) from error


def _axis_sizes(args) -> dict[str, int]:
    """Return the axes of the mesh that the arguments are sharded over."""
    for leaf in jax.tree.leaves(args):
        if isinstance(leaf.sharding, NamedSharding):
            return dict(leaf.sharding.mesh.shape)
    return {}


def _needed_bytes(error: Exception) -> int | None:
    """Return the bytes that a compiler says a program needs, or None where the error is another.

    What libtpu calls temporaries there holds the arguments too: a program with 17 GiB of arguments and
    next to no temporaries is told "temporaries (17.00G)".
    """
    found = re.search(r"temporaries \(([\d.]+)([KMGT]?)\) exceeds", str(error)) or re.search(
        r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", str(error)
    )
    if found is None:
        return None
    return int(float(found.group(1)) * 1024 ** " KMGT".index(found.group(2) or " "))


def _sentence(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")


def _forecast(compiled, target, name, axis_sizes, labels, model_flops, wall_seconds) -> Forecast:
    module = hlo.parse(compiled.as_text())
    stats = compiled.memory_analysis()
    arguments: dict[str, int] = {}
    parameter_dims = []
    for parameter in module.entry.parameters.values():
        label = labels(parameter.op_name)
        arguments[label] = arguments.get(label, 0) + parameter.shape.bytes_in(hlo.HBM)
        if label == "parameters":
            parameter_dims.append(parameter.shape.dims)
            parameter_dims.append(parameter.shape.dims[1:])  # one layer's part of the stack
    moments = memory.simulate(module, label_operations([dims for dims in parameter_dims if len(dims) > 1]))
    work = count_work(module, target, axis_sizes)
    peak = max(moments, key=lambda moment: moment.bytes, default=memory.Moment("", {}))
    breakdown = arguments | _scaled(peak.live, stats.temp_size_in_bytes)
    breakdown["outputs"] = stats.output_size_in_bytes - stats.alias_size_in_bytes
    if target.platform == "tpu":
        breakdown["code"] = stats.generated_code_size_in_bytes  # in HBM there
    silent = work.silent_seconds(target, model_flops)
    alone = work.seconds + silent
    roofline = max(alone, work.network_seconds)
    on_host = stats.host_argument_size_in_bytes + stats.host_output_size_in_bytes
    on_host += stats.host_temp_size_in_bytes - stats.host_alias_size_in_bytes
    return Forecast(
        target=target,
        name=name,
        peak_bytes=sum(breakdown.values()),
        breakdown={label: size for label, size in breakdown.items() if size},
        timeline=_thinned(moments),
        simulated_temporaries=peak.bytes,
        compiler_temporaries=stats.temp_size_in_bytes,
        bytes_moved=work.bytes_moved,
        flops=work.flops,
        model_flops=model_flops,
        collective_bytes=work.sent,
        compiler_seconds=work.cycles / target.clock_hz if target.clock_hz else 0.0,
        compute_seconds=work.compute_seconds(target) + silent,
        memory_seconds=work.bytes_moved / target.hbm_bandwidth,
        network_seconds=work.network_seconds,
        roofline_seconds=alone + work.exposed_host_seconds,
        exposed_network_seconds=work.exposed_seconds,
        host_bytes=on_host,
        host_bytes_moved=work.host_bytes,
        host_seconds=work.host_bytes / target.host_link_bandwidth,
        exposed_host_seconds=work.exposed_host_seconds,
        silent_kernels=work.silent_kernels,
        seconds=roofline / target.efficiency + work.exposed_host_seconds,
        compile_wall_seconds=wall_seconds,
    )


def _scaled(live: dict[str, int], temporaries: int) -> dict[str, int]:
    """Return the simulated live set, made to sum to the compiler's figure.

    What the compiler needs beyond it (padding between arrays, buffers of its own) is "unattributed";
    where the simulation finds more, as it may on a CPU, every part shrinks alike.
    """
    simulated = sum(live.values())
    if simulated <= temporaries:
        return live | {"unattributed": temporaries - simulated}
    scaled = {label: size * temporaries // simulated for label, size in live.items()}
    return scaled | {"unattributed": temporaries - sum(scaled.values())}


def _thinned(moments: Sequence[memory.Moment]) -> tuple[tuple[str, dict[str, int]], ...]:
    """Return at most so many moments, of each stretch the one with the most bytes."""
    width = -(-len(moments) // _TIMELINE_LENGTH) or 1
    stretches = (moments[at : at + width] for at in range(0, len(moments), width))
    tops = (max(stretch, key=lambda moment: moment.bytes) for stretch in stretches)
    return tuple((top.operation, top.live) for top in tops)


def _argument_bytes(fn, args, labels) -> dict[str, int]:
    """Return the bytes of each argument's part on one device, added up by label."""
    total: dict[str, int] = {}
    for name, value in inspect.signature(fn).bind(*args).arguments.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(value):
            if leaf.sharding.memory_kind == parallel.HOST_MEMORY:
                continue
            label = labels(name + jax.tree_util.keystr(path))
            shard = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            total[label] = total.get(label, 0) + shard
    return total


def _too_big(target, name, arguments, needed, failure, model_flops, wall_seconds) -> Forecast:
    """Return the forecast of a program that the compiler would not finish because it does not fit."""
    temporaries = max(needed - sum(arguments.values()), 0)
    breakdown = arguments | {"unattributed": temporaries}
    infinite = float("inf")
    return Forecast(
        target=target,
        name=name,
        peak_bytes=sum(breakdown.values()),
        breakdown=breakdown,
        timeline=(),
        simulated_temporaries=0,
        compiler_temporaries=temporaries,
        bytes_moved=0.0,
        flops={},
        model_flops=model_flops,
        collective_bytes={},
        compiler_seconds=0.0,
        compute_seconds=0.0,
        memory_seconds=0.0,
        network_seconds=0.0,
        roofline_seconds=infinite,
        seconds=infinite,
        compile_wall_seconds=wall_seconds,
        failure=failure,
    )
