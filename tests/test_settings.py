"""A user's own settings of jax (64-bit types, no implicit promotion) change no result and break nothing.

Each case gives the same numbers without them and with all three, in a process of its own: jax cannot
take 64-bit types back.
"""

import functools
import json
import os
import pickle
import re
import subprocess
import sys
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxllm_kernels.attention import attention
from jaxllm_kernels.linear_cross_entropy import linear_cross_entropy

from jaxllm import generate, interpret, models, optim, quantize, subnetwork
from jaxllm.train.state import init_state
from jaxllm.train.step import make_train_step

SETTINGS = {
    "JAX_ENABLE_X64": "1", "JAX_NUMPY_RANK_PROMOTION": "raise", "JAX_NUMPY_DTYPE_PROMOTION": "strict",
}  # fmt: skip
V, B, T = 32, 2, 12
TOKENS = np.random.default_rng(0).integers(0, V, (B, T))
SEGMENTS = np.repeat([[0] * 5 + [1] * 7], B, 0)
MASK = np.random.default_rng(1).uniform(size=(B, T)) < 0.8
SMALL = dict(vocab_size=V, embed_dim=16, num_heads=2, num_layers=2, context_length=32)
GROUPS = models.VocabGroups.of(range(V), 5)


@functools.cache
def model(preset="llama-nano", **changes):
    """Return a config and its parameters, drawn under jax's own settings."""
    config = models.get_preset(preset, **(SMALL | changes))
    drawn = jax.jit(lambda key: jax.tree.map(lambda w: 3 * w, models.init(config, key)))
    return config, drawn(jax.random.key(0))


MODELS = {
    "gpt2": dict(preset="gpt2-nano", dtype="bfloat16", remat="full"),
    "gpt-neo": dict(preset="gpt-neo-nano", windows=(0, 5)),
    "llama": dict(sink_logit="learned", num_kv_heads=1, norm="rmsnorm_scalar"),
    "groups-own": dict(vocab_groups=GROUPS),
    "groups-hidden": dict(vocab_groups=GROUPS, group_head="hidden", dtype="bfloat16"),
    "groups-logits": dict(vocab_groups=GROUPS, group_head="logits", param_dtype="bfloat16"),
}


def trained(name):
    """Loss, its parts and gradients over packed rows; logits; parameters drawn."""
    config, params = model(**MODELS[name])

    @jax.jit
    def run(params):
        options = dict(mask=jnp.asarray(MASK), segment_ids=SEGMENTS)
        loss = lambda params: models.loss(config, params, TOKENS, TOKENS, **options)
        drawn = models.init(config, jax.random.key(0))
        return jax.value_and_grad(loss, has_aux=True)(params), models.apply(config, params, TOKENS), drawn

    return run(params)


def long_texts():
    """Attention head by head and in loops, cross-entropy by blocks of a large vocabulary and by chunks."""
    draw = lambda *shape: np.random.default_rng(0).normal(size=shape).astype(np.float32)

    def attended(T, **options):
        query, key, ids = draw(2, T, 2, 8), draw(2, T, 1, 8), np.arange(2 * T).reshape(2, T) // 200
        loss = lambda q, k: jnp.sum(jnp.square(attention(q, k, k, segment_ids_BT=ids, **options)))
        return jax.value_and_grad(loss, (0, 1))(query, key)

    labels = np.arange(24).reshape(2, 12) * 100
    loss = lambda *x: linear_cross_entropy(*x, labels, limits_BT=labels + 200, logits_bytes=2**17).total
    lossy = jax.value_and_grad(loss, (0, 1))(draw(2, 12, 8), draw(8, 3000))
    return attended(300, window=70), attended(1100), lossy


def looked_into():
    config, params = model()
    edits = {"mlp_out": lambda value, layer: value * 0.5}
    sites = models.Sites(capture=("attn_probs", "resid_post"), edits=edits)
    batch = {"tokens": TOKENS, "segment_ids": SEGMENTS}
    statistics = interpret.activation_statistics(config, params, [batch])
    return models.capture(config, params, TOKENS, sites), vars(statistics)


def quantized():
    config, params = model()
    batches = [{"inputs": TOKENS, "tokens": TOKENS, "targets": TOKENS, "mask": MASK, "segment_ids": SEGMENTS}]
    ranges = quantize.shared_ranges(quantize.activation_ranges(config, params, batches))
    weights = quantize.quantize_weights(params, models.axes(config), quantize.SCHEMES["zeropoint4"])
    return models.trunk(config, weights, TOKENS, sites=quantize.quantized_activations(ranges, 8)), ranges


def generated(name, **sampling):
    config, params = model(**MODELS[name])
    options = dict(max_new_tokens=4, tokens_per_call=4, sampling=generate.SamplingConfig(**sampling))
    return vars(generate.generate(config, params, [[1, 2, 3], [4]], eos_id=31, **options))


AXES = {"w": ("embed", "mlp"), "b": ("mlp",)}
RATE = optax.scale_by_learning_rate(1e-2)
OWN = dict(warmup_steps=1, learning_rate=1e-2, schedule="wsd")
OPTIMIZERS = {
    **{name: ("float32", optim.make_optimizer(optim.OptimConfig(name=name, **OWN), 4, AXES))
       for name in ("adamw", "lion", "orthoadam")},
    "adamw_bf16_sr": (
        "bfloat16", optim.make_optimizer(optim.OptimConfig(name="adamw_bf16_sr", **OWN), 4, AXES)
    ),
    "stochastic_round": (
        "bfloat16", optax.chain(optim.scale_by_adam_low_precision(), RATE, optim.stochastic_round(0))
    ),
    "kahan": ("bfloat16", optax.chain(optim.scale_by_adam_low_precision(), RATE, optim.kahan_compensate())),
    "master": ("bfloat16", optim.with_master_weights(optax.sgd(1e-2, momentum=0.9))),
}  # fmt: skip


def updated(name):
    """Two steps of two parts each, of a linear model."""
    param_dtype, optimizer = OPTIMIZERS[name]

    def init(key):
        drawn = jax.random.normal(key, (16, 8), jnp.float32)
        return {"w": drawn.astype(param_dtype), "b": jnp.zeros(8, param_dtype)}

    def loss(params, batch, key):
        x, y = batch
        error = x @ params["w"].astype(jnp.float32) + params["b"].astype(jnp.float32)[None] - y
        return jnp.mean(jnp.square(error)), {"token_count": jnp.int32(len(x))}

    draw = np.random.default_rng(0)
    batch = tuple(draw.normal(size=(4, width)).astype(np.float32) for width in (16, 8))
    step = jax.jit(make_train_step(loss, optimizer, accumulate=2))
    state, _ = step(init_state(init, optimizer, jax.random.key(1)), batch)
    return step(state, batch)


def subnetworks():
    config, axes = model()[0], models.axes(model()[0])
    rates = subnetwork.Rates(layers=0.5, heads=0.5, mlp=0.5)
    schedule = subnetwork.Schedule((subnetwork.Stage(1.0, rates),), layer_scale="inverse")
    view = subnetwork.subnetwork(config, rates, schedule, axes)
    optimizer = optim.mask_unsampled(optax.adamw(1e-2), axes)
    loss = lambda params, batch, key: models.loss(config, params, batch, batch)
    state = init_state(functools.partial(models.init, config), optimizer, jax.random.key(1))
    return jax.jit(make_train_step(loss, optimizer, accumulate=2, views=[view]))(state, TOKENS)


CASES = {
    **{f"train {name}": functools.partial(trained, name) for name in MODELS},
    "long texts": long_texts,
    "interpret": looked_into,
    "quantize": quantized,
    "generate greedy": lambda: generated("gpt2", temperature=0, repetition_penalty=1.2),
    "generate": lambda: generated("llama", temperature=0.7, top_k=9, top_p=0.9, min_p=0.01),
    "generate groups": lambda: generated("groups-hidden"),
    **{f"optimizer {name}": functools.partial(updated, name) for name in OPTIMIZERS},
    "subnetworks": subnetworks,
}
FAST = ("optimizer stochastic_round",)  # the others are slow


def computed(names):
    """Return {name: its leaves by path, or what went wrong}."""
    results = {}
    for name in names:
        try:
            leaves = jax.tree_util.tree_leaves_with_path(CASES[name]())
            results[name] = {jax.tree_util.keystr(path): np.asarray(_plain(leaf)) for path, leaf in leaves}
        except Exception:
            results[name] = traceback.format_exc()
    return results


def _plain(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key) else leaf


@pytest.fixture(scope="module")
def with_settings(tmp_path_factory):
    return in_a_process(FAST, SETTINGS, tmp_path_factory.mktemp("settings"))


def in_a_process(names, environment, folder):
    path = folder / "results"
    command = [sys.executable, "-m", "tests.test_settings", str(path), *names]
    subprocess.run(command, cwd=Path(__file__).parents[1], env=os.environ | environment, check=True)
    return pickle.loads(path.read_bytes())


@pytest.mark.parametrize("name", FAST)
def test_settings_change_no_number(name, with_settings):
    assert_same_numbers(with_settings[name], computed([name])[name])


@pytest.mark.slow
def test_settings_change_no_number_of_any_case(tmp_path):
    """Every case with all of them, and every third one without 64-bit types, whose widths hide others."""
    expected, names = computed(CASES), list(CASES)
    narrow = {name: value for name, value in SETTINGS.items() if name != "JAX_ENABLE_X64"}
    for environment, some in [(SETTINGS, names), (narrow, names[::3])]:
        found = in_a_process(some, environment, tmp_path)
        for name in some:
            assert_same_numbers(found[name], expected[name])


RUNS = {
    "tiles": ["--engine", "tiles"],
    "subnetworks and groups": ["--subnetwork", "est-gpt2-like", "--accumulate", "2", "--optim.name", "lion",
                               "--vocab-groups", "frequency", "--precision", "mixed_o2", "--eval-every", "2"],
}  # fmt: skip


IN_ONE_PROCESS = """
import importlib, json, sys
for name, *flags in json.loads(sys.argv[1]):
    importlib.import_module(f"jaxllm.cli.{name}").main(flags)
    print("\\f")
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """Return what each run's three commands print, {name: plain then with settings}, of one process each.

    The runs share most of what they compile, and a process costs seconds to start.
    """
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text("Four score and seven years ago our fathers brought forth. " * 300)
    flags = ["--preset", "gpt2-nano", "--tokenizer", "bytes", "--data", "text.txt", "--steps", "4",
             "--seq-len", "32", "--batch-size", "4", "--no-progress"]  # fmt: skip
    flags_here = os.environ["XLA_FLAGS"]  # with which programs compile in a third of the time
    one_device = {"XLA_FLAGS": re.sub(r"\S+device_count=\d+", "", flags_here)}
    said = {name: [] for name in RUNS}
    for environment in (one_device, SETTINGS | one_device):
        kind = "settings" if len(environment) > 1 else "plain"
        commands = []
        for name, own in RUNS.items():
            out = f"{kind}/{name.replace(' ', '-')}"
            commands += (["train", *flags, *own, "--out", out], ["generate", out, "--temperature", "0"],
                         ["evaluate", out, "--data", "text.txt"])  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", IN_ONE_PROCESS, json.dumps(commands)], cwd=folder,
            env=os.environ | environment, capture_output=True, text=True, encoding="utf-8",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        texts = done.stdout.replace(f"{kind}/", "").split("\f")[:-1]
        for at, name in enumerate(RUNS):
            said[name] += texts[3 * at : 3 * at + 3]
    return said


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_and_what_reads_it_are_the_same_under_settings(name, said):
    assert len(said[name]) == 6
    losses = [[float(x) for x in re.findall(r"\b\d+\.\d{4}\b", text)] for text in said[name]]
    assert losses[0] and losses[2]
    for plain, under in zip(losses[:3], losses[3:], strict=True):
        np.testing.assert_allclose(under, plain, atol=2e-4)


def assert_same_numbers(found, expected):
    assert isinstance(expected, dict), expected
    assert isinstance(found, dict), found
    assert found.keys() == expected.keys()
    for path, b in expected.items():
        a = found[path]
        if b.dtype.kind not in "iub":  # indices and counts may be wider
            assert a.dtype == b.dtype, path
        step = 2**-7 if b.dtype == jnp.bfloat16 else 1e-5
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        np.testing.assert_allclose(a, b, rtol=step, atol=1e-6, err_msg=path)


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(pickle.dumps(computed(sys.argv[2:])))
