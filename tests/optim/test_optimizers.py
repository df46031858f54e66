"""The optimizer that a config describes, and float32 master weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm import models
from jaxllm.optim import OptimConfig, decay_mask, make_optimizer, with_master_weights


@pytest.mark.parametrize("preset", ["gpt2-nano", "gpt-neo-nano", "llama-nano"])
def test_decay_touches_matrices_and_embeddings_and_nothing_else(preset):
    config = dataclasses.replace(models.get_preset(preset), sink_logit="learned")
    mask = decay_mask(models.axes(config))
    decaying = {jax.tree_util.keystr(p) for p, m in jax.tree.leaves_with_path(mask) if m}
    spared = {jax.tree_util.keystr(p) for p, m in jax.tree.leaves_with_path(mask) if not m}
    assert all(any(w in p for w in ("tokens", "positions", "query", "key", "value", "out", "'in'",
                                    "gate", "kernel")) and "bias" not in p for p in decaying)  # fmt: skip
    assert all(any(w in p for w in ("bias", "scale", "sink")) for p in spared)
    assert any("sink" in p for p in spared) and any("scale" in p for p in spared)


def test_config_builds_clip_then_masked_adamw():
    """Against the same steps in float64: global clip, AdamW, decay on the matrix only."""
    axes = {"matrix": ("embed", "mlp"), "gain": ("embed",)}
    config = OptimConfig(learning_rate=0.1, schedule="constant", warmup_steps=0, clip_norm=0.5,
                         weight_decay=0.2, beta1=0.8, beta2=0.9)  # fmt: skip
    optimizer = make_optimizer(config, 10, axes)
    rng = np.random.default_rng(0)
    params = {"matrix": rng.normal(size=(3, 4)), "gain": rng.normal(size=3)}
    ours = jax.tree.map(jnp.float32, params)
    state = optimizer.init(ours)
    m = v = jax.tree.map(np.zeros_like, params)
    for t in range(1, 6):
        grads = jax.tree.map(lambda p: rng.normal(size=p.shape) * t, params)  # noqa: B023
        updates, state = optimizer.update(jax.tree.map(jnp.float32, grads), state, ours)
        ours = optax.apply_updates(ours, updates)
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        grads = {k: g * min(1, 0.5 / norm) for k, g in grads.items()}
        m = {k: 0.8 * m[k] + 0.2 * grads[k] for k in m}
        v = {k: 0.9 * v[k] + 0.1 * grads[k] ** 2 for k in v}
        for k, decay in (("matrix", 0.2), ("gain", 0.0)):
            step = (m[k] / (1 - 0.8**t)) / (np.sqrt(v[k] / (1 - 0.9**t)) + 1e-8)
            params[k] = params[k] - 0.1 * (step + decay * params[k])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), ours, params)


@pytest.mark.parametrize("name", ["adamw", "lion", "lars", "novograd", "adadelta", "adafactor"])
def test_every_decay_is_decoupled_and_of_matrices_alone(name):
    """A step is the one without decay, less learning rate times decay times the matrix."""
    config = OptimConfig(name=name, learning_rate=0.1, warmup_steps=0, clip_norm=0, weight_decay=0.2)
    rates = [0.1, 0.1 * (0.1 + 0.9 * (1 + np.cos(np.pi / 4)) / 2), 0.055]  # cosine, to a tenth in four steps
    optimizers = [
        make_optimizer(one, 4, {"matrix": ("embed", "mlp"), "gain": ("embed",)})
        for one in (config, dataclasses.replace(config, weight_decay=0))
    ]
    rng = np.random.default_rng(0)
    params = {"matrix": jnp.float32(rng.normal(size=(3, 4))), "gain": jnp.float32(rng.normal(size=3))}
    states = [one.init(params) for one in optimizers]
    for rate in rates:
        grads = jax.tree.map(lambda p: jnp.float32(rng.normal(size=p.shape)), params)  # noqa: B023
        found = [one.update(grads, state, params) for one, state in zip(optimizers, states, strict=True)]
        (updates, bare), states = zip(*found, strict=True)
        expected = bare["matrix"] - rate * 0.2 * params["matrix"]
        np.testing.assert_allclose(updates["matrix"], expected, atol=1e-6)
        np.testing.assert_array_equal(updates["gain"], bare["gain"])
        params = optax.apply_updates(params, updates)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "adamw_bf16_sr", "adam", "sgd", "rmsprop"])
def test_a_config_says_whether_weights_decay(name):
    config = OptimConfig(name=name, learning_rate=0.1, warmup_steps=0, weight_decay=0.2)
    params, grads = {"w": jnp.ones((2, 2), jnp.bfloat16)}, {"w": jnp.zeros((2, 2), jnp.bfloat16)}
    optimizer = make_optimizer(config, 4, {"w": ("embed", "mlp")})
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    assert config.decays is bool((updates["w"] != 0).any())
    assert not dataclasses.replace(config, weight_decay=0).decays


def my_chain(learning_rate, axes):
    """An optimizer of the user's own, found by name."""
    assert axes == {"w": ("embed",)}
    return optax.chain(optax.scale_by_sign(), optax.scale_by_learning_rate(learning_rate))


def test_any_chain_by_name():
    config = OptimConfig(name=f"{__name__}:my_chain", learning_rate=0.5, schedule="constant",
                         warmup_steps=0, clip_norm=0)  # fmt: skip
    optimizer = make_optimizer(config, 10, {"w": ("embed",)})
    params = {"w": jnp.zeros(2)}
    updates, _ = optimizer.update({"w": jnp.array([3.0, -4.0])}, optimizer.init(params), params)
    np.testing.assert_array_equal(updates["w"], [-0.5, 0.5])


@pytest.mark.smoke
def test_master_weights_follow_the_float32_run_and_params_are_its_rounding():
    inner = optax.adamw(1e-3, weight_decay=0.1)
    optimizer = with_master_weights(inner)
    start = jax.random.normal(jax.random.key(0), (64, 8)).astype(jnp.bfloat16)
    params, state = start, optimizer.init(start)
    reference, reference_state = start.astype(jnp.float32), inner.init(start.astype(jnp.float32))
    for t in range(20):
        grads = jax.random.normal(jax.random.key(t), (64, 8)).astype(jnp.bfloat16)
        updates, state = jax.jit(optimizer.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
        updates, reference_state = inner.update(
            grads.astype(jnp.float32), reference_state, reference
        )
        reference = optax.apply_updates(reference, updates)
    assert params.dtype == jnp.bfloat16 and state.master.dtype == jnp.float32
    np.testing.assert_allclose(state.master, reference, atol=1e-6)
    np.testing.assert_array_equal(params, state.master.astype(jnp.bfloat16))


def test_params_are_the_rounding_of_master_weights_next_to_ties():
    """500,000 master weights within 2 float32 steps of the midpoint of two bfloat16 values, where a
    difference that was not rounded first lands on the wrong side about once in a hundred. (One that
    was can do so only where a weight shrinks 10,000-fold in a step: once in a million here.)"""
    rng = np.random.default_rng(0)
    params = jnp.array(rng.normal(size=500_000), jnp.bfloat16)
    target = params.astype(jnp.float32) * (1 + rng.normal(size=params.size).astype(np.float32))
    bits = jax.lax.bitcast_convert_type(target, jnp.uint32) & jnp.uint32(0xFFFF0000)
    bits = bits + 0x8000 + jnp.array(rng.integers(-2, 3, params.size), jnp.int32).astype(jnp.uint32)
    target = jax.lax.bitcast_convert_type(bits, jnp.float32)
    optimizer = with_master_weights(optax.sgd(1.0))
    state = optimizer.init(params)._replace(master=target)
    updates, state = optimizer.update(jnp.zeros_like(params), state, params)
    wrong = optax.apply_updates(params, updates) != state.master.astype(jnp.bfloat16)
    assert int(jnp.sum(wrong)) <= 2
