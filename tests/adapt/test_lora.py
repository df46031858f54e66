"""Adapters against the model with their products added to its weights, and against optax by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.adapt import Lora, LoraConfig
from jaxllm.errors import UserError
from jaxllm.models.declarations import Declaration
from jaxllm.models.linear import linear
from tests.models.random_params import random_params

MODEL = dict(num_layers=2, embed_dim=24, num_heads=3, mlp_dim=40, vocab_size=61, context_length=16,
             attention_implementation="xla")  # fmt: skip
CONFIGS = {
    "gpt2": models.get_preset("gpt2-nano", **MODEL),
    "llama": models.get_preset("llama-nano", **MODEL | dict(num_kv_heads=1)),
}
LORA = LoraConfig(rank=5, targets="all", alpha=7.0)


INIT = jax.jit(models.init, static_argnums=0)
TOKENS = np.random.default_rng(1).integers(0, 61, (2, 9))


def random_adapter(lora):
    """An adapter whose B is not zero."""
    draw = np.random.default_rng(3)
    shapes = jax.eval_shape(lora.init, jax.random.key(2))
    return jax.tree.map(lambda x: np.float32(0.3 * draw.normal(size=x.shape)), shapes)


def added(base, adapter, scale):
    """W + s A B of every layer, written out by the shapes of A and B."""
    made = jax.tree.map(lambda x: x, base)
    for block in adapter["layers"]:
        for name, pair in adapter["layers"][block].items():
            A, B, w = pair["A"], pair["B"], base["layers"][block][name]
            product = jnp.einsum(
                "lir,lro->lio", A.reshape(len(A), -1, A.shape[-1]), B.reshape(*B.shape[:2], -1)
            )
            made["layers"][block][name] = w + scale * product.reshape(w.shape)
    return made


@pytest.mark.parametrize("family", [pytest.param("gpt2", marks=pytest.mark.slow), "llama"])
def test_values_and_gradients_are_those_of_the_merged_model(family):
    config = CONFIGS[family]
    lora, base = Lora(config, LORA), INIT(config, jax.random.key(0))
    adapter = random_adapter(lora)
    assert len(jax.tree.leaves(adapter)) == 2 * len(lora.matrices) == (14 if family == "llama" else 12)

    def loss(seen, base):
        return lambda a: models.loss(config, seen(a, base), TOKENS, TOKENS)[0]

    @jax.jit
    def computed(adapter, base):
        ours, wanted = (
            jax.value_and_grad(loss(seen, base))(adapter)
            for seen in (lambda a, base: lora(a, base, None), lambda a, base: added(base, a, 7 / 5))
        )
        merged, apart = lora.merge(adapter, base), lora(adapter, models.layers_apart(base), None)
        logits = [models.apply(config, p, TOKENS) for p in (lora(adapter, base, None), merged, apart)]
        return ours, wanted, logits, merged, added(base, adapter, 7 / 5)

    with jax.default_matmul_precision("highest"):
        ours, wanted, logits, merged, whole = computed(adapter, base)
    np.testing.assert_allclose(ours[0], wanted[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), ours[1], wanted[1])
    np.testing.assert_allclose(logits[0], logits[1], atol=2e-5)
    np.testing.assert_allclose(logits[2], logits[1], atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), merged, whole)


def test_narrow_products_of_a_stack_and_of_layers_apart_have_the_same_gradients():
    config = dataclasses.replace(CONFIGS["llama"], dtype="bfloat16")
    lora, base = Lora(config, LORA), INIT(config, jax.random.key(0))
    adapter = random_adapter(lora)

    @jax.jit
    def both(base):
        def loss(adapter, base):
            return models.loss(config, lora(adapter, base, None), TOKENS, TOKENS)[0]

        return [jax.grad(loss)(adapter, form) for form in (base, models.layers_apart(base))]

    stacked, apart = both(base)
    assert {x.dtype for x in jax.tree.leaves(stacked)} == {jnp.dtype("float32")}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.05, atol=2e-3), stacked, apart)
    assert max(np.abs(x).max() for x in jax.tree.leaves(stacked)) > 0.05


def test_a_new_adapter_changes_nothing_and_is_drawn_as_peft_does():
    lora = Lora(CONFIGS["llama"], LoraConfig(rank=64, targets="out,mlp_in"))
    adapter = jax.device_get(jax.jit(lora.init)(jax.random.key(0)))
    pair = adapter["layers"]["attn"]["out"]
    assert pair["A"].shape == (2, 3, 8, 64) and pair["B"].shape == (2, 64, 24) and not pair["B"].any()
    for A, inputs in ((pair["A"], 24), (adapter["layers"]["mlp"]["in"]["A"], 24)):
        assert 0.98 * inputs**-0.5 < np.abs(A).max() <= inputs**-0.5
        np.testing.assert_allclose(A.std(), (inputs * 3) ** -0.5, rtol=0.05)


def test_dropout_is_of_what_A_multiplies_in_float64():
    draw = np.random.default_rng(0)
    x, w, a, b = (draw.normal(size=s) for s in ((4, 50, 7), (7, 3, 2), (7, 5), (5, 3, 2)))
    key = jax.random.key_data(jax.random.key(4))
    weight = models.LowRank(*(jnp.asarray(v, jnp.float32) for v in (w, a, b)), key, 0.5, 0.25)
    declared = {"w": Declaration((7, 3, 2), ("embed", "heads", "head_dim"), ("embed",))}
    got = linear(jnp.asarray(x, jnp.float32), {"w": weight}, declared, "w")
    kept = np.asarray(jax.random.bernoulli(jax.random.wrap_key_data(key), 0.75, (200, 7))).reshape(x.shape)
    assert 0.6 < kept.mean() < 0.9
    wanted = x @ w.reshape(7, 6) + 0.5 * (x * kept / 0.75) @ a @ b.reshape(5, 6)
    np.testing.assert_allclose(got.reshape(4, 50, 6), wanted, atol=2e-5)


def test_a_step_draws_other_dropout_in_each_layer_and_matrix():
    config = CONFIGS["gpt2"]
    lora, base = Lora(config, LoraConfig(rank=2, dropout=0.5)), models.shapes(config)
    adapter = jax.eval_shape(lora.init, jax.random.key(1))
    seen = lora(adapter, base, jax.random.key(5))["layers"]["attn"]
    keys = np.concatenate([seen["query"].key, seen["value"].key])
    assert len(np.unique(keys, axis=0)) == 4
    assert lora(adapter, base, None)["layers"]["attn"]["query"].key is None


def test_rslora_scales_by_the_root_of_the_rank():
    assert LoraConfig(rank=16, alpha=8.0, rslora=True).scale == 2.0
    assert LoraConfig(rank=16, alpha=8.0).scale == 0.5


def test_sharding_follows_the_weights_axes():
    axes = Lora(CONFIGS["llama"], LoraConfig(rank=4, targets="value,out")).axes()["layers"]["attn"]
    assert axes["value"]["A"] == ("layers", "embed", "rank") and axes["value"]["A"].inputs == ("embed",)
    assert axes["value"]["B"] == ("layers", "rank", "kv_heads", "head_dim")
    assert axes["out"]["A"].inputs == ("heads", "head_dim") and axes["out"]["B"].inputs == ("rank",)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LoraConfig(rank=0), "lora.rank is 0; it must be a whole number of at least 1"),
        (lambda: LoraConfig(dropout=0.1), "lora.dropout is set and lora.rank is not"),
        (lambda: Lora(CONFIGS["llama"], LoraConfig(rank=1, targets="valeu")), "did you mean 'value'"),
        (lambda: Lora(CONFIGS["gpt2"], LoraConfig(rank=1, targets="mlp_gate")), "Known: all, key"),
        (lambda: Lora(CONFIGS["gpt2"], LoraConfig(rank=1, targets=",")), "name some of all, key"),
    ],
)
def test_bad_values(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_parameters_trained_whole_beside_it_are_no_part_of_what_is_frozen():
    config = CONFIGS["llama"]
    lora = Lora(config, LoraConfig(rank=2, targets="query", also="final_norm,mlp_out,embed"))
    base = random_params(config)
    trained, frozen = lora.begin(base, jax.random.key(1))
    assert "embed" not in frozen and "out" not in frozen["layers"]["mlp"]
    jax.tree.map(lambda x, axes: len(axes) == x.ndim or pytest.fail(f"{axes}"), trained, lora.axes())
    trained = jax.tree.map(lambda x: x + 0.1, trained)
    tokens = jnp.arange(10).reshape(2, 5)
    run = jax.jit(lambda seen: models.apply(config, seen, tokens))
    expected = run(lora.merge(trained, base))
    assert np.abs(expected - run(base)).max() > 0.1
    np.testing.assert_allclose(run(lora(trained, frozen, None)), expected, atol=1e-5)
    np.testing.assert_allclose(run(lora(trained, models.layers_apart(frozen), None)), expected, atol=1e-5)
    with pytest.raises(UserError, match="trains 'layers/attn/query' whole, and lora.targets puts"):
        Lora(config, LoraConfig(rank=2, targets="query", also="attn"))
    with pytest.raises(UserError, match="unknown lora.also name 'haed'"):
        Lora(config, LoraConfig(rank=2, also="haed"))
