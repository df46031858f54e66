"""Mamba's selective scan against rivals on this CPU: time and memory of values and all gradients.

    python -m experiments.benchmarks.selective_scan  # the whole; its time was not measured
    python -m experiments.benchmarks.selective_scan --slow-rounds 0      # without transformers
    python -m experiments.benchmarks.selective_scan --preset debug       # seconds

Rivals in turn, in one process, float32: `lax.associative_scan` over [B, T, D, N]; transformers' own path
without CUDA kernels (modeling_mamba, a loop over positions); and the same loop in torch over unbound
positions, since autograd of transformers' indexing writes a whole [B, D, T, N] at every position, so its time
grows with T squared. Torch rivals are left out where they are not installed (extra: torch). Memory is the
compiled program's temporaries. The floor is what no program can undercut: every array read or written once at
the rate of one large copy, or six multiply-adds for each [B, T, D, N] element (the state and its output, and
twice that backward) at the rate of one large product, whichever takes longer; exponentials are not counted.
"""

import importlib.util
import statistics
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxllm_kernels.selective_scan import selective_scan
from tqdm import tqdm

from jaxllm.cli.experiment import run_experiment
from jaxllm.config import Config, Count, CountOrZero, UserPath
from jaxllm.report import Claim, Report

MIB = 2**20
OURS, ASSOCIATIVE, TRANSFORMERS, UNBOUND = "jaxllm", "associative_scan", "transformers", "torch_unbound"
SOURCE = "issue: families"


@dataclass(frozen=True)
class SelectiveScanConfig(Config):
    """Sizes of the scan, and how often it is timed."""

    batch_size: Count = 4
    time: Count = 1024
    channels: Count = 512
    states: Count = 16
    rounds: CountOrZero = 5  # turns of each; 0: memory alone
    slow_rounds: CountOrZero = 1  # turns of transformers' own path
    out: UserPath = "runs/selective-scan"


PRESETS = {
    "small": SelectiveScanConfig,
    "debug": lambda: SelectiveScanConfig(batch_size=2, time=64, channels=16, states=4, rounds=1),
}


def main(config: SelectiveScanConfig, preset: str = "small") -> Report:
    """Time the contenders, account for their memory and write the report into `config.out`."""
    started = time.time()
    metrics, claims = {}, []
    _memory(config, metrics, claims)
    if config.rounds:
        _time(config, metrics, claims)
    report = Report(
        experiment="benchmarks/selective_scan", preset=preset, config=vars(config), seeds=[0],
        metrics=metrics, claims=claims, seconds=time.time() - started,
    )  # fmt: skip
    report.write(config.out)
    print(report.to_text())
    return report


def associative(u_BTD, delta_BTD, A_DN, B_BTN, C_BTN):
    """Return y as a parallel prefix over pairs (decay, term) gives it; holds [B, T, D, N]."""
    decay = jnp.exp(delta_BTD[..., None] * A_DN)
    term = (delta_BTD * u_BTD)[..., None] * B_BTN[:, :, None]
    join = lambda left, right: (left[0] * right[0], right[0] * left[1] + right[1])
    _, h_BTDN = jax.lax.associative_scan(join, (decay, term), axis=1)
    return jnp.einsum("btdn,btn->btd", h_BTDN, C_BTN)


def _ours(*arrays):
    return selective_scan(*arrays)[0]


def _step(scan):
    """Return a jitted function to (loss, gradients of all five arrays)."""
    loss = lambda *arrays: jnp.sum(jnp.sin(scan(*arrays)))
    return jax.jit(jax.value_and_grad(loss, argnums=tuple(range(5))))


def _shapes(config, times=1):
    B, T, D, N = config.batch_size, config.time * times, config.channels, config.states
    return (B, T, D), (B, T, D), (D, N), (B, T, N), (B, T, N)


def _compile(scan, config, times=1):
    return _step(scan).lower(*(jax.ShapeDtypeStruct(s, "float32") for s in _shapes(config, times))).compile()


def _memory(config, metrics, claims):
    def temporaries(scan, times=1):
        return _compile(scan, config, times).memory_analysis().temp_size_in_bytes / MIB

    ours, doubled, theirs = temporaries(_ours), temporaries(_ours, 2), temporaries(associative)
    metrics |= {
        f"temporary_mib/{OURS}": ours,
        f"temporary_mib/{OURS}/twice_the_time": doubled,
        f"temporary_mib/{ASSOCIATIVE}": theirs,
        f"ratio/temporary_mib/{ASSOCIATIVE}": theirs / ours,
    }
    claims += [
        Claim("memory of twice the time over memory, at most 2.1: linear", SOURCE,
              measured=doubled / ours, holds=doubled <= 2.1 * ours),
        Claim("an eighth of the memory of lax.associative_scan at most", SOURCE,
              measured=ours / theirs, holds=8 * ours <= theirs),
    ]  # fmt: skip


def _time(config, metrics, claims):
    rng = np.random.default_rng(0)
    u, delta, A, B, C = (rng.normal(size=s).astype("float32") for s in _shapes(config))
    arrays = u, np.log1p(np.exp(delta - 3)), -np.exp(A), B, C
    runs = {OURS: _jax_run(_ours, config, arrays), ASSOCIATIVE: _jax_run(associative, config, arrays)}
    if importlib.util.find_spec("torch"):
        runs[UNBOUND] = _torch_run(_unbound, arrays)
        if importlib.util.find_spec("transformers") and config.slow_rounds:
            runs[TRANSFORMERS] = _torch_run(_transformers(), arrays)
    forward = jax.jit(_ours)
    runs["jaxllm/forward"] = lambda: jax.block_until_ready(forward(*arrays))
    sample, square = (jnp.asarray(rng.random(shape, "float32")) for shape in (2**24, (1024, 1024)))
    copy, product = jax.jit(lambda x: x + 1), jax.jit(lambda x: x @ x)
    runs["floor/bytes"] = lambda: jax.block_until_ready(copy(sample))
    runs["floor/multiply_adds"] = lambda: jax.block_until_ready(product(square))
    for name in ("jaxllm/forward", "floor/bytes", "floor/multiply_adds"):
        runs[name]()  # compiled
    seconds = {name: [] for name in runs}
    found = {}
    for i in tqdm(range(config.rounds), desc="on this CPU", unit="round"):
        for name, once in runs.items():
            if name == TRANSFORMERS and i >= config.slow_rounds:
                continue
            begun = time.perf_counter()
            found[name] = once()
            seconds[name].append(time.perf_counter() - begun)
    elements = config.batch_size * config.time * config.channels * config.states
    # Arrays are read forward and again backward, y and the gradients written; a copy moves an array twice.
    moved = 3 * sum(x.size for x in arrays) + 2 * arrays[0].size
    seconds["floor/bytes"] = [s * moved / (2 * sample.size) for s in seconds["floor/bytes"]]
    seconds["floor/multiply_adds"] = [s * 6 * elements / 1024**3 for s in seconds["floor/multiply_adds"]]
    for name, values in seconds.items():
        metrics[f"seconds/{name}"] = statistics.median(values)
        metrics[f"seconds/{name}/min"], metrics[f"seconds/{name}/max"] = min(values), max(values)
    for name in (ASSOCIATIVE, UNBOUND, TRANSFORMERS):
        if name not in runs:
            continue
        for ours, theirs in zip(found[OURS], found[name], strict=True):
            worst = np.abs(np.asarray(ours) - np.asarray(theirs)).max() / np.abs(ours).max()
            assert worst < 1e-3, f"{name} computes something else: {worst}"
        metrics[f"ratio/seconds/{name}"] = metrics[f"seconds/{name}"] / metrics[f"seconds/{OURS}"]
    floor = max(metrics["seconds/floor/bytes/min"], metrics["seconds/floor/multiply_adds/min"])
    metrics["ratio/seconds/floor"] = floor / metrics[f"seconds/{OURS}"]
    for name, least in ((TRANSFORMERS, 3.0), (ASSOCIATIVE, 1.5)):
        if name in runs:
            ratio = metrics[f"ratio/seconds/{name}"]
            claims.append(
                Claim(f"at least {least} times as fast as {name}", SOURCE, ratio, holds=ratio >= least)
            )  # fmt: skip


def _jax_run(scan, config, arrays):
    program = _compile(scan, config)
    arrays = [jnp.asarray(x) for x in arrays]

    def once():
        loss, gradients = jax.block_until_ready(program(*arrays))
        return loss, *gradients

    once()
    return once


def _torch_run(scan, arrays):
    """Return a function to (loss, *gradients), of a scan that takes time last, as transformers does."""
    import torch

    tensors = [torch.from_numpy(x).requires_grad_() for x in arrays]

    def once():
        for x in tensors:
            x.grad = None
        u, delta, A, B, C = tensors
        loss = torch.sin(scan(u.mT, delta.mT, A, B.mT, C.mT)).sum()
        loss.backward()
        return (loss.detach().numpy(), *(x.grad.numpy() for x in tensors))

    return once


def _unbound(u_BDT, delta_BDT, A_DN, B_BNT, C_BNT):
    """Return y [B, D, T]: transformers' loop, but for `unbind`, whose gradient is one stack."""
    import torch

    decay = torch.exp(A_DN[None, :, None] * delta_BDT[..., None])
    term = (delta_BDT * u_BDT)[..., None] * B_BNT.mT[:, None]
    h_BDN, found = torch.zeros_like(term[:, :, 0]), []
    for decay_BDN, term_BDN, C_BN in zip(decay.unbind(2), term.unbind(2), C_BNT.unbind(2), strict=True):
        h_BDN = decay_BDN * h_BDN + term_BDN
        found.append(torch.matmul(h_BDN, C_BN[..., None])[..., 0])
    return torch.stack(found, dim=-1)


def _transformers():
    from transformers.models.mamba import modeling_mamba

    scan = modeling_mamba.mamba_selective_scan
    return getattr(scan, "__wrapped__", scan)  # never a kernel fetched from the hub


if __name__ == "__main__":
    run_experiment(main, SelectiveScanConfig, PRESETS)
