"""Our kernels beside their rivals on the GPU that is here: milliseconds, and how far from the floor.

    python -m experiments.benchmarks.gpu_kernels     # 3 minutes on an H100

In bfloat16. The floor is the larger of the arithmetic at the rate of one large matrix product and the bytes,
each input read and each output written once, at the rate of one large copy, both measured in the same run.
Rivals: cuDNN through jax.nn, XLA, optax and, where it is installed, torch (with torch.compile).
A time is the median of rounds in which a program is called so often that the round takes 50 ms.
"""

import functools
import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxllm_kernels.attention import attention
from jaxllm_kernels.hadamard_rotate import hadamard_rotate, random_signs
from jaxllm_kernels.linear_cross_entropy import linear_cross_entropy
from tqdm import tqdm

from experiments.benchmarks.optimizers import BETAS, DECAY, RATE, make_optimizers, optimizer_step
from experiments.benchmarks.turns import dispatched
from jaxllm import models
from jaxllm.cli.experiment import run_experiment
from jaxllm.config import Config, Count, UserPath
from jaxllm.errors import UserError
from jaxllm.report import Claim, Report, markdown_table

ATTENTIONS = {  # B, T, H, G, K
    "gpt2": (8, 1024, 12, 12, 64),
    "llama": (1, 4096, 32, 8, 128),
}


@dataclass(frozen=True)
class GpuKernelsConfig(Config):
    """What is timed, and how often."""

    kernels: tuple[str, ...] = ("attention", "cross_entropy", "adamw", "hadamard")
    rounds: Count = 7
    tokens: Count = 8192  # of the cross-entropy
    model: str = "gpt2"  # whose width, vocabulary and parameters the other kernels get
    out: UserPath = "runs/gpu-kernels"


def main(config: GpuKernelsConfig, preset: str = "small") -> Report:
    """Time every kernel and its rivals; write the report into `config.out`."""
    if jax.default_backend() != "gpu":
        raise UserError(f"this benchmark times a GPU, and jax runs on {jax.default_backend()} here")
    started = time.time()
    rates = _product_rate(), _copy_rate()
    metrics = {"teraflops": rates[0] / 1e12, "terabytes_per_second": rates[1] / 1e12}
    claims, rows = [], []
    for kernel in config.kernels:
        for case, (contenders, flops, moved) in _CASES[kernel](config).items():
            floor = metrics[f"floor_ms/{case}"] = 1e3 * max(flops / rates[0], moved / rates[1])
            milliseconds = {}
            for name, make in tqdm(contenders.items(), desc=case, unit="contender"):
                try:
                    milliseconds[name] = 1e3 * _seconds(make(), config.rounds)
                except Exception as error:  # a rival that this machine's versions cannot run
                    print(f"{case}: {name} is left out: {str(error).splitlines()[0][:200]}")
                    continue
                metrics[f"ms/{case}/{name}"] = milliseconds[name]
                rows.append((case, name, f"{milliseconds[name]:.3f}", f"{milliseconds[name] / floor:.2f}"))
            rivals = {name: t for name, t in milliseconds.items() if not name.startswith("jaxllm")}
            ours = milliseconds.get("jaxllm")
            if ours is None or not rivals:
                continue
            best = min(rivals, key=rivals.get)
            metrics[f"ratio/{case}"] = rivals[best] / ours
            claims.append(Claim(f"{case}: as fast as the fastest rival ({best})", "issue: kernels",
                                measured=ours / rivals[best], holds=ours <= rivals[best]))  # fmt: skip
    table = markdown_table(("case", "by", "ms", "over the floor"), rows)
    report = Report(
        experiment="benchmarks/gpu_kernels", preset=preset,
        config=vars(config) | {"device": jax.devices()[0].device_kind}, seeds=[0], metrics=metrics,
        claims=claims, seconds=time.time() - started, sections={"Times": table},
    )  # fmt: skip
    report.write(config.out)
    print(table)
    print(report.to_text())
    return report


def _seconds(call: Callable[[], object], rounds: int) -> float:
    """Return the median seconds of a call that returns before the GPU has done the work."""
    wait = _wait_for_torch if getattr(call, "torch", False) else jax.block_until_ready
    wait(call())
    wait(call())
    [once] = dispatched(call, wait, 1, 1)
    return statistics.median(dispatched(call, wait, rounds, max(1, min(1000, int(0.05 / once)))))


def _wait_for_torch(_):
    import torch

    torch.cuda.synchronize()


def _product_rate() -> float:
    """Return the FLOP/s of one large bfloat16 product."""
    x = jax.random.normal(jax.random.key(0), (8192, 8192), jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    return 2 * 8192**3 / _seconds(lambda: product(x, x), 5)


def _copy_rate() -> float:
    """Return bytes read and written in a second by adding to a gigabyte in place."""
    x = [jnp.zeros(2**28, jnp.float32)]
    add = jax.jit(lambda x: x + 1, donate_argnums=0)

    def call():
        x[0] = add(x[0])
        return x[0]

    return 2 * 2**30 / _seconds(call, 5)


def _draw(*shape, seed=0, dtype=jnp.bfloat16, scale=1.0):
    return scale * jax.random.normal(jax.random.key(seed), shape, dtype)


def _jitted(fn, *arrays):
    """Return what makes the call; compiled when it is made."""

    def make():
        program = jax.jit(fn).lower(*arrays).compile()
        return lambda: program(*arrays)

    return make


def _torch_call(make_call: Callable) -> Callable:
    """Return what makes a call of torch, marked as one that torch waits for."""

    def make():
        call = make_call()

        def marked():
            return call()

        marked.torch = True
        return marked

    return make


def _to_torch(x):
    import torch

    return torch.from_numpy(np.array(x.astype(jnp.float32))).cuda().to(torch.bfloat16)


def _attention_cases(config):
    cases = {}
    for name, (B, T, H, G, K) in ATTENTIONS.items():
        q, d_out = _draw(B, T, H, K), _draw(B, T, H, K, seed=1)
        k, v = _draw(B, T, G, K, seed=2), _draw(B, T, G, K, seed=3)
        flops = 4 * B * H * T * T * K / 2  # causal
        once = 2 * (q.size + k.size) * 2
        of_jax = functools.partial(jax.nn.dot_product_attention, is_causal=True)
        programs = {
            "jaxllm": attention,
            "jaxllm pallas_gpu": functools.partial(attention, implementation="pallas_gpu"),
            "jaxllm softmax-1": functools.partial(attention, sink=0.0),
            "jaxllm xla": functools.partial(attention, implementation="xla"),
            "jax.nn cudnn": functools.partial(of_jax, implementation="cudnn"),
            "jax.nn xla": functools.partial(of_jax, implementation="xla"),
        }
        forward = {who: _jitted(fn, q, k, v) for who, fn in programs.items()}
        both = {who: _jitted(_both(fn), q, k, v, d_out) for who, fn in programs.items()}
        if importlib.util.find_spec("torch"):
            given = (q, k, v, d_out)
            forward["torch"] = _torch_call(functools.partial(_torch_attention, given, False))
            both["torch"] = _torch_call(functools.partial(_torch_attention, given, True))
        cases[f"attention, {name}, forward"] = forward, flops, once
        cases[f"attention, {name}, both"] = both, 3.5 * flops, 3 * once  # scores are computed again
    return cases


def _both(forward):
    def both(query, key, value, d_out):
        out, pull = jax.vjp(forward, query, key, value)
        return out, pull(d_out)

    return both


def _torch_attention(given, backward: bool):
    import torch

    q, k, v, d_out = (_to_torch(x).transpose(1, 2).contiguous() for x in given)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    attend = functools.partial(
        torch.nn.functional.scaled_dot_product_attention, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
    )
    if not backward:
        return torch.no_grad()(lambda: attend(*leaves))
    return lambda: torch.autograd.grad(attend(*leaves), leaves, d_out)


def _cross_entropy_cases(config):
    model = models.get_preset(config.model)
    N, D, V = config.tokens, model.embed_dim, model.vocab_size
    hidden, weights = _draw(N, D), _draw(V, D, seed=1, dtype=jnp.float32, scale=0.02)
    labels = jax.random.randint(jax.random.key(2), (N,), 0, V)

    def ours(h, w, y, **options):
        return linear_cross_entropy(h, w, y, vocab_axis=0, **options).total / N

    def full(h, w, y):
        logits = (h @ w.T.astype(h.dtype)).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    step = lambda loss: jax.value_and_grad(loss, argnums=(0, 1))
    losses = {
        "jaxllm": ours,
        "jaxllm xla": functools.partial(ours, implementation="xla"),
        "optax, full logits": full,
    }
    contenders = {name: _jitted(step(loss), hidden, weights, labels) for name, loss in losses.items()}
    if importlib.util.find_spec("torch"):
        for name, compiled in (("torch", False), ("torch.compile", True)):
            make = functools.partial(_torch_cross_entropy, hidden, weights, labels, compiled)
            contenders[name] = _torch_call(make)
    moved = 2 * (2 * hidden.size) + 2 * (4 * weights.size)
    return {f"cross-entropy, N {N} D {D} V {V}": (contenders, 3 * 2 * N * D * V, moved)}


def _torch_cross_entropy(hidden, weights, labels, compiled):
    import torch

    h = _to_torch(hidden).requires_grad_()
    w = torch.from_numpy(np.array(weights)).cuda().requires_grad_()
    y = torch.from_numpy(np.array(labels)).cuda().long()

    def loss(h, w, y):
        logits = torch.nn.functional.linear(h, w.to(h.dtype))
        return torch.nn.functional.cross_entropy(logits.float(), y)

    run = torch.compile(loss) if compiled else loss
    return lambda: torch.autograd.grad(run(h, w, y), (h, w))


def _adamw_cases(config):
    model = models.get_preset(config.model)
    contenders = {}
    for name, (dtype, optimizer) in make_optimizers(models.axes(model)).items():
        if name == "orthoadam_kronecker":
            continue  # draws an orthogonal matrix of 3,072 columns
        if name == "adamw_bf16_sr":
            name = "jaxllm"
        label = name if name in ("jaxllm", "optax_adamw") else f"jaxllm {name}"
        contenders[label] = functools.partial(_jax_optimizer, model, dtype, optimizer)
    if importlib.util.find_spec("torch"):
        for dtype in ("float32", "bfloat16"):
            make = functools.partial(_torch_optimizer, model, dtype)
            contenders[f"torch fused, {dtype}"] = _torch_call(make)
    return {f"AdamW, {config.model}": (contenders, 0, 14 * model.num_params)}


def _jax_optimizer(model, dtype, optimizer):
    params = jax.tree.map(lambda s: _draw(*s.shape, dtype=dtype, scale=0.02), models.shapes(model))
    gradients = jax.tree.map(lambda x: x / 20, params)
    state = [params, jax.jit(optimizer.init)(params)]
    update = jax.jit(optimizer_step(optimizer), donate_argnums=(0, 1))

    def step():
        state[:] = update(*state, gradients)
        return state[0]

    return step


def _torch_optimizer(model, dtype):
    import torch

    leaves = jax.tree.leaves(models.shapes(model))
    params = [0.02 * torch.randn(s.shape, device="cuda", dtype=getattr(torch, dtype)) for s in leaves]
    params = [torch.nn.Parameter(x) for x in params]
    for param in params:
        param.grad = param.detach() / 20
    return torch.optim.AdamW(params, lr=RATE, betas=BETAS, eps=1e-8, weight_decay=DECAY, fused=True).step


def _hadamard_cases(config):
    D = models.get_preset(config.model).embed_dim
    x, signs = _draw(2**22 // D * 16, D), random_signs(jnp.array([5, 6], jnp.uint32), D)
    rotate = functools.partial(hadamard_rotate, block_size=256, signs=signs)
    contenders = {
        "jaxllm": _jitted(rotate, x),
        "xla": _jitted(functools.partial(rotate, implementation="xla"), x),
    }
    return {f"Hadamard, {x.shape[0]} x {D}": (contenders, 0, 2 * 2 * x.size)}


_CASES = {
    "attention": _attention_cases,
    "cross_entropy": _cross_entropy_cases,
    "adamw": _adamw_cases,
    "hadamard": _hadamard_cases,
}


if __name__ == "__main__":
    run_experiment(main, GpuKernelsConfig)
