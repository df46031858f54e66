"""Configs, presets and parameters: what is refused, what is counted, how it is drawn."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.errors import UserError

PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "gpt-neo-125m": 125_198_592,
    "gpt-neo-1.3b": 1_315_575_808,
    "gpt-neo-2.7b": 2_651_307_520,
    "tinyllama-1.1b": 1_100_048_384,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "llama-3.1-8b": 8_030_261_248,
    "bert-base-uncased": 109_514_298,
    "bert-large-uncased": 335_174_458,
    "all-minilm-l6-v2": 22_713_216 - 384 * 385,  # without its pooler, which no vector is made by
    "roberta-base": 124_697_433 - 2 * 768,  # without the positions of padding
    "roberta-large": 355_412_057 - 2 * 1024,
    "deberta-v3-base": 183_831_552,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
}


@pytest.mark.parametrize("name", models.PRESETS)
def test_parameter_counts_agree(name):
    config = models.PRESETS[name]
    stored = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(models.shapes(config)))
    assert config.num_params == stored
    assert stored == PUBLISHED.get(name, stored)


def test_every_published_size_has_a_preset():
    assert set(PUBLISHED) <= set(models.PRESETS)


@pytest.mark.parametrize(
    "overrides",
    [
        dict(norm="rmsnorm_scalar"),
        dict(norm="rmsnorm_scalar", norm_bias=True, sink_logit="learned"),
        dict(gated_mlp=True, num_kv_heads=1, tie_embeddings=False, position="none", head_dim=10),
        dict(qkv_bias=False, mlp_bias=False, out_bias=False, norm_bias=False),
    ],
)
def test_counts_hold_for_every_option(overrides):
    config = models.get_preset("gpt2-nano", **overrides)
    leaves = jax.tree.leaves(models.shapes(config))
    assert config.num_params == sum(math.prod(leaf.shape) for leaf in leaves)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (dict(num_heads=5), "does not divide embed_dim"),
        (dict(num_kv_heads=3), "num_kv_heads=3 does not divide num_heads=4"),
        (dict(norm="batchnorm"), "unknown norm 'batchnorm'"),
        (dict(activation="gelu_tan"), "did you mean 'gelu_tanh'"),
        (dict(position="rotary", head_dim=5), "even head_dim"),
        (dict(position="rotary", rotary_fraction=0.2), "even head_dim, not 16 with rotary_fraction=0.2"),
        (dict(rotary_fraction=0), "rotary_fraction is 0; it must be a number above 0"),
        (dict(dropout=1.0), "dropout is 1.0; it must be a number below 1"),
        (dict(windows=(0, 4, 8)), "divides num_layers"),
        (dict(remat="dot"), "did you mean 'dots'"),
        (dict(dtype="float23"), "did you mean 'float32'"),
        (dict(vocab_size=0), "vocab_size is 0; it must be a whole number of at least 1"),
        (dict(sink_logit="learnt"), "'learned'"),
        (dict(attention_implementation="xls"), "did you mean 'xla'"),
    ],
)
def test_bad_configs_are_refused_with_a_sentence(overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        models.ModelConfig(**(dict(num_layers=2, embed_dim=64, num_heads=4) | overrides))


def test_presets_derive_sizes_again_unless_given():
    config = models.get_preset("gpt2", embed_dim=64, num_heads=4)
    assert (config.head_dim, config.num_kv_heads, config.mlp_dim) == (16, 4, 256)
    assert models.get_preset("smollm2-135m", num_layers=2).num_kv_heads == 3
    with pytest.raises(UserError, match="did you mean 'gpt2'"):
        models.get_preset("gtp2")


def test_a_vocabulary_may_stay_open_until_parameters_are_needed():
    config = models.get_preset("gpt2-nano", vocab_size=None)
    for use in (models.shapes, models.axes, lambda config: config.num_params):
        with pytest.raises(UserError, match="vocab_size is None"):
            use(config)


def test_flops_match_the_compiler_on_an_unrolled_model():
    # One layer, so that the scan body is counted once and there is one of it; full attention.
    config = models.get_preset(
        "llama-nano", num_layers=1, vocab_size=512, attention_implementation="reference"
    )
    tokens = jax.ShapeDtypeStruct((2, 64), jnp.int32)
    step = jax.grad(lambda p, t: models.loss(config, p, t, t)[0])
    compiled = jax.jit(step).lower(models.shapes(config), tokens).compile()
    analysis = compiled.cost_analysis()
    counted = (analysis[0] if isinstance(analysis, list) else analysis)["flops"]
    ratio = counted / (2 * 64 * config.flops_per_token(64))
    assert 1.0 <= ratio < 1.15, ratio  # the rest is norms, softmax and the optimizer-free extras


def test_a_window_bounds_the_flops():
    neo = models.get_preset("gpt-neo-125m")
    every = dataclasses.replace(neo, windows=(0,))
    heads = 12 * neo.num_heads * neo.head_dim * neo.num_layers
    assert every.flops_per_token(2048) - neo.flops_per_token(2048) == heads // 2 * (2048 - 256)


@pytest.mark.smoke
@pytest.mark.parametrize("name", ["gpt2-nano", "gpt-neo-nano", "llama-nano"])
def test_axes_name_every_dimension(name):
    config = models.get_preset(name, sink_logit="learned")
    params = models.shapes(config)
    names = models.axes(config)
    structure = jax.tree.structure(params)
    assert structure == jax.tree.structure(names, is_leaf=lambda x: isinstance(x, tuple))
    assert names["layers"]["attn"]["sink"] == ("layers", "heads")
    sizes = {"embed": config.embed_dim, "mlp": config.mlp_dim, "heads": config.num_heads,
             "kv_heads": config.num_kv_heads, "layers": config.num_layers,
             "vocab": config.vocab_size}  # fmt: skip
    for array, axes in zip(jax.tree.leaves(params), structure.flatten_up_to(names), strict=True):
        assert all(sizes.get(axis, size) == size for axis, size in zip(axes, array.shape, strict=True))


def test_init_follows_gpt2_and_its_keys_do_not_depend_on_each_other():
    config = models.get_preset("gpt2-micro")
    init = jax.jit(models.init, static_argnums=0)
    params = init(config, jax.random.key(0))
    attn, mlp = params["layers"]["attn"], params["layers"]["mlp"]
    assert np.std(attn["query"]) == pytest.approx(0.02, rel=0.03)
    assert np.std(params["embed"]["positions"]) == pytest.approx(0.02, rel=0.03)
    for residual in (attn["out"], mlp["out"]):
        assert np.std(residual) == pytest.approx(0.02 / math.sqrt(2 * config.num_layers), rel=0.03)
    assert np.all(np.asarray(mlp["in_bias"]) == 0)
    assert np.all(np.asarray(params["final_norm"]["scale"]) == 1)
    assert not np.array_equal(attn["query"], attn["key"])
    assert not np.array_equal(attn["query"][0], attn["query"][1])

    more = init(
        models.get_preset("gpt2-micro", sink_logit="learned", gated_mlp=True, tie_embeddings=False),
        jax.random.key(0),
    )
    for part in ("query", "out"):
        assert np.array_equal(more["layers"]["attn"][part], attn[part])
    assert np.array_equal(more["embed"]["tokens"], params["embed"]["tokens"])


def test_params_come_in_param_dtype():
    config = models.get_preset("gpt2-nano", param_dtype="bfloat16")
    leaves = jax.tree.leaves(jax.jit(models.init, static_argnums=0)(config, jax.random.key(0)))
    assert {leaf.dtype for leaf in leaves} == {jnp.bfloat16.dtype}
