"""Attention against its rivals: speed and memory on this CPU, bytes and memory compiled for TPU and GPU.

    python -m experiments.benchmarks.attention      # about 6 minutes on 2 quiet cores

On the CPU all rivals compute the same float32 causal attention, forward and backward, turn by turn.
Compiled programs are never run: memory is their compilers' account, and the bytes a TPU kernel moves are
counted from its grid, since every block whose index changes from one step to the next is copied once.
Needs torch, and the extras tpu-targets and cuda-targets for the machines that are not here; tokamax is
left out where it is not installed.

RESULT (30 November and 1 December 2026, 2 quiet cores, B 8, T 1024, 12 heads of 64; four runs): forward 1.38,
1.38, 1.51 and 1.55 of torch's speed; forward and backward 1.08, 0.88, 1.00 and 0.98 (429, 568, 487 and 482
ms): undecided.
"""

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from jaxllm_kernels.attention import attention
from tqdm import tqdm

from experiments.benchmarks import attention_bytes
from jaxllm import targets
from jaxllm.cli.experiment import run_experiment
from jaxllm.config import Config, Count, UserPath
from jaxllm.errors import UserError
from jaxllm.report import Claim, Report, decide

SOURCE = "issue: kernels"


@dataclass(frozen=True)
class AttentionConfig(Config):
    """The shape, and how often to time it."""

    batch: Count = 8
    length: Count = 1024
    heads: Count = 12
    head_dim: Count = 64
    repeats: Count = 5  # of each timing
    cpu: bool = True  # run on this CPU
    machines: bool = True  # compile for machines that are not here
    out: UserPath = "runs/attention"


def main(config: AttentionConfig, preset: str = "small") -> Report:
    """Measure, print and write the report into `config.out`."""
    started = time.time()
    metrics, claims = {}, []
    if config.cpu:
        _on_cpu(config, metrics, claims)
        _long_texts(metrics, claims)
    if config.machines:
        _on_tpu(config, metrics, claims)
        _on_gpu(config, metrics)
    report = Report(
        experiment="benchmarks/attention", preset=preset, config=vars(config), seeds=[], metrics=metrics,
        claims=claims, seconds=time.time() - started,
    )  # fmt: skip
    report.write(config.out)
    print(report.to_text())
    return report


def _on_cpu(config: AttentionConfig, metrics, claims):
    """Time every rival, interleaved; compare the temporary memory of those that XLA compiles."""
    shape = (config.batch, config.length, config.heads, config.head_dim)
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(4)]
    rivals = {"jaxllm": attention, **_jax_rivals()}
    runs = {}
    for name, forward in rivals.items():
        for part, fn, given in (("forward", forward, arrays[:3]), ("both", _both(forward), arrays)):
            compiled = jax.jit(fn).lower(*given).compile()
            metrics[f"temporary_mb/{part}/{name}"] = compiled.memory_analysis().temp_size_in_bytes / 1e6
            runs[part, name] = functools.partial(_wait_for, compiled, given)
    for part, fn in _torch_rival(arrays).items():
        runs[part, "torch"] = fn
    seconds = {which: [] for which in runs}
    for which in runs:
        runs[which]()
    for _ in tqdm(range(config.repeats), desc="timing", unit="round"):
        for which, fn in runs.items():
            begun = time.perf_counter()
            fn()
            seconds[which].append(time.perf_counter() - begun)
    for (part, name), values in seconds.items():
        metrics[f"milliseconds/{part}/{name}"] = statistics.median(values) * 1e3
    for part in ("forward", "both"):
        ratios = {}
        for name in [name for which, name in runs if which == part and name != "jaxllm"]:
            pairs = zip(seconds[part, name], seconds[part, "jaxllm"], strict=True)
            ratios[name] = [theirs / ours for theirs, ours in pairs]
            metrics[f"ratio/speed_{part}/{name}"] = statistics.median(ratios[name])
        closest = min(ratios, key=lambda name: statistics.median(ratios[name]))
        ratio = statistics.median(ratios[closest])
        interval = min(ratios[closest]), max(ratios[closest])
        claims.append(Claim(f"CPU, {part}: as fast as the fastest rival ({closest})", SOURCE,
                            measured=ratio, interval=interval,
                            holds=decide(interval, at_least=1)))  # fmt: skip
        memory = {name: metrics[f"temporary_mb/{part}/{name}"] for name in rivals}
        leanest = min(set(rivals) - {"jaxllm"}, key=memory.get)
        ratio = metrics[f"ratio/memory_{part}/{leanest}"] = memory[leanest] / memory["jaxllm"]
        claims.append(Claim(f"CPU, {part}: as lean as the leanest rival ({leanest})", SOURCE,
                            measured=ratio, holds=ratio >= 1))  # fmt: skip


def _long_texts(metrics, claims):
    """Compile forward and backward for ever longer texts."""
    sizes = []
    for length in (1024, 2048, 4096, 8192, 16384):
        shape = jax.ShapeDtypeStruct((1, length, 12, 64), jnp.float32)
        memory = jax.jit(_both(attention)).lower(*[shape] * 4).compile().memory_analysis()
        sizes.append(memory.temp_size_in_bytes / 1e6)
        metrics[f"temporary_mb/both/length_{length}"] = sizes[-1]
    growth = max(b / a for a, b in zip(sizes, sizes[1:], strict=False))
    claims.append(Claim("CPU: twice the length takes at most 2.2 x the memory, 1024 to 16384", SOURCE,
                        measured=growth, holds=growth <= 2.2))  # fmt: skip


def _on_tpu(config: AttentionConfig, metrics, claims):
    """Compile for v5e: memory and bytes of ours, splash attention and flash attention."""
    if not targets.is_available("v5e-1"):
        return
    shape = (config.batch, config.length, config.heads, config.head_dim)
    rivals = {
        "jaxllm": functools.partial(attention, implementation="pallas_tpu"),
        "softmax-1": functools.partial(attention, implementation="pallas_tpu", sink=0.0),
        "splash, default blocks": _splash(config, None),
        "splash, blocks of 512": _splash(config, 512),
        "flash": _flash,
    }
    for name, forward in tqdm(rivals.items(), desc="compiling for v5e", unit="program"):
        _account(f"v5e/{name}", _both(forward), shape, "v5e-1", metrics)
    for name in ("jaxllm", "softmax-1"):
        metrics[f"v5e/{name}/moved_mb"] = attention_bytes.moved(_both(rivals[name]), shape) / 1e6
    for name, block in (("default blocks", None), ("blocks of 512", 512)):
        kernel = attention_bytes.splash_kernel(config.length, 1, block)
        moved = attention_bytes.splash_moved(kernel, shape)
        metrics[f"v5e/splash, {name}/moved_mb"] = moved / 1e6
        ratio = metrics["v5e/jaxllm/moved_mb"] * 1e6 / moved
        metrics[f"ratio/v5e_bytes/splash, {name}"] = 1 / ratio
        claims.append(Claim(f"v5e: bytes moved at most 1.05 x splash attention's ({name})", SOURCE,
                            measured=ratio, holds=ratio <= 1.05))  # fmt: skip
    for what in ("moved_mb", "peak_mb"):
        ratio = metrics[f"v5e/softmax-1/{what}"] / metrics[f"v5e/jaxllm/{what}"]
        claims.append(Claim(f"v5e: softmax-1 takes at most 1.01 x softmax's {what}", SOURCE,
                            measured=ratio, holds=ratio <= 1.01))  # fmt: skip


def _on_gpu(config: AttentionConfig, metrics):
    """Compile for an H100: memory of ours and the rivals that compile without one."""
    if not targets.is_available("h100"):
        return
    shape = (config.batch, config.length, config.heads, config.head_dim)
    rivals = {"jaxllm": attention, "jax.nn": _jax_rivals()["jax.nn"], **_tokamax("triton")}
    for name, forward in tqdm(rivals.items(), desc="compiling for h100", unit="program"):
        try:
            _account(f"h100/{name}", _both(forward), shape, "h100", metrics)
        except Exception as error:  # a rival that asks for a GPU while it traces
            print(f"h100: {name} does not compile here: {str(error).splitlines()[0][:100]}")


def _account(name: str, fn: Callable, shape, target: str, metrics):
    """Compile fn of four bfloat16 arrays for a target and note its memory."""
    sharding = SingleDeviceSharding(targets.devices(target)[0])
    given = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)] * 4
    options = targets.compiler_options(target) or None
    memory = jax.jit(fn).lower(*given).compile(compiler_options=options).memory_analysis()
    metrics[f"{name}/temporary_mb"] = memory.temp_size_in_bytes / 1e6
    metrics[f"{name}/peak_mb"] = (
        memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    ) / 1e6


def _both(forward: Callable) -> Callable:
    def both(query, key, value, d_out):
        out, pull = jax.vjp(forward, query, key, value)
        return out, pull(d_out)

    return both


def _wait_for(compiled, given):
    jax.block_until_ready(compiled(*given))


def _jax_rivals() -> dict[str, Callable]:
    jax_nn = functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation="xla")
    return {"jax.nn": jax_nn, **_tokamax("xla"), **_tokamax("xla_chunked")}


def _tokamax(implementation: str) -> dict[str, Callable]:
    try:
        import tokamax
        from absl import flags
    except ImportError as error:
        print(f"tokamax is left out: {error}")
        return {}
    flags.FLAGS.mark_as_parsed()  # else tokamax takes this program's arguments for its own
    attend = functools.partial(
        tokamax.dot_product_attention, is_causal=True, implementation=implementation
    )
    return {f"tokamax {implementation}": attend}


def _splash(config: AttentionConfig, block: int | None) -> Callable:
    kernel = attention_bytes.splash_kernel(config.length, config.heads, block)

    def forward(query, key, value):
        scaled = query * jnp.asarray(config.head_dim**-0.5, query.dtype)
        heads_first = [x.swapaxes(1, 2) for x in (scaled, key, value)]
        return jax.vmap(kernel)(*heads_first).swapaxes(1, 2)

    return forward


def _flash(query, key, value):
    from jax.experimental.pallas.ops.tpu.flash_attention import flash_attention

    heads_first = [x.swapaxes(1, 2) for x in (query, key, value)]
    out = flash_attention(*heads_first, causal=True, sm_scale=query.shape[3] ** -0.5)
    return out.swapaxes(1, 2)


def _torch_rival(arrays) -> dict[str, Callable]:
    """Return torch's fused attention, forward and with backward, on its own layout [B, H, T, K]."""
    try:
        import torch
    except ImportError as error:
        raise UserError(f"the comparison needs torch: {error}") from error
    query, key, value, d_out = (torch.from_numpy(np.array(x)).transpose(1, 2).contiguous() for x in arrays)
    leaves = [x.requires_grad_() for x in (query, key, value)]
    attend = functools.partial(torch.nn.functional.scaled_dot_product_attention, is_causal=True)

    def forward():
        with torch.no_grad():
            attend(*leaves)

    return {"forward": forward, "both": lambda: torch.autograd.grad(attend(*leaves), leaves, d_out)}


if __name__ == "__main__":
    run_experiment(main, AttentionConfig)
