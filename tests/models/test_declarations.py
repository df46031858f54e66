"""Which axes a product sums over is declared once; everything that used to guess reads it."""

import copy
import dataclasses
import functools
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models, quantize
from jaxllm.axis_names import AxisNames, with_inputs
from jaxllm.errors import UserError
from jaxllm.models import decoding_layout, huggingface
from jaxllm.models.cast_in_scan import _Stack, cast_in_scan
from jaxllm.models.declarations import Declaration, declare
from jaxllm.models.linear import linear
from jaxllm.optim import decay_mask
from jaxllm.quantize.rounding import zeropoint
from jaxllm.subnetwork import extract
from jaxllm.train.state import _is_moved
from tests.models.random_params import random_params


def small(config):
    """Return a config of the same parameters, each small; no two axes of a weight of one size."""
    kv_heads = 4 if config.num_kv_heads == config.num_heads else 2
    return dataclasses.replace(
        config, vocab_size=48, context_length=9, num_layers=2 * len(config.windows), embed_dim=20,
        num_heads=4, num_kv_heads=kv_heads, head_dim=6, rotary_fraction=1.0, mlp_dim=28, dtype="bfloat16",
        param_dtype="float32",
    )  # fmt: skip


def flat(tree):
    return {tuple(key.key for key in path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


PRESETS = {name: config for name, config in models.PRESETS.items() if isinstance(config, models.ModelConfig)}
# Every preset, those with equal parameters once.
CONFIGS = {str(flat(models.axes(config)).items()): small(config) for config in PRESETS.values()}
CONFIGS["sinks"] = small(models.get_preset("gpt2", sink_logit="learned", tie_embeddings=False))
CONFIGS["scalar gains"] = small(models.get_preset("llama-nano", norm="rmsnorm_scalar", qkv_bias=True))
CONFIGS = dict(enumerate(CONFIGS.values()))

SUMMED = {  # what decoding's table said: how many axes of each matrix
    ("attn", "query"): 1, ("attn", "key"): 1, ("attn", "value"): 1, ("attn", "out"): 2,
    ("mlp", "in"): 1, ("mlp", "gate"): 1, ("mlp", "out"): 1,
}  # fmt: skip


def old_decay(names):
    return "embed" in names and len([n for n in names if n not in ("layers", "vocab_groups")]) > 1


def old_outputs(names):
    own = tuple(name for name in names if name != "layers")
    if "embed" not in own or len(own) < 2 or len(own) == len(names):  # outside the layers
        return None
    return own[1:] if own[0] == "embed" else ("embed",)


def old_is_output(names):
    return names[-1:] == ("embed",) and ("heads" in names or "mlp" in names)


def old_merged(shape, path):
    if path in ("layers/attn/query", "layers/attn/key", "layers/attn/value"):
        return (shape[0], math.prod(shape[1:]))
    if path == "layers/attn/out":
        return (math.prod(shape[:-1]), shape[-1])
    return (math.prod(shape),) if path.startswith("layers/attn/") else tuple(shape)


def test_shapes_are_those_of_what_is_drawn():
    groups = models.VocabGroups.of(range(48), 5)
    grouped = [dataclasses.replace(CONFIGS[0], vocab_groups=groups, group_head=kind)
               for kind in ("hidden", "logits", "own")]  # fmt: skip
    others = [config for name, config in models.PRESETS.items() if name not in PRESETS]
    for config in (*CONFIGS.values(), *grouped, *others):
        config = dataclasses.replace(config, param_dtype="bfloat16")
        drawn = jax.eval_shape(functools.partial(models.init, config), jax.random.key(0))
        assert models.shapes(config) == drawn, config


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_answers_as_the_rules_by_name_and_rank_did(name):
    config = models.PRESETS[name]
    axes, shapes = flat(models.axes(config)), flat(models.shapes(config))
    decays = flat(decay_mask(models.axes(config)))
    for path, one in flat_declarations(config).items():
        names, stacked = tuple(axes[path]), path[0] == "layers"
        assert axes[path].inputs == one.inputs == with_inputs(names).inputs, path
        assert decays[path] == old_decay(names), path
        if old_outputs(names) is not None:
            assert axes[path].outputs == old_outputs(names), path
        if path[1:] in SUMMED:
            assert len(one.inputs) == SUMMED[path[1:]], path
        old = len(names) > 2 and stacked and shapes[path].size * shapes[path].dtype.itemsize >= 2**20
        assert _is_moved(axes[path], shapes[path]) == old, path
        own = one.shape[stacked:]
        assert huggingface._merged(own, one) == old_merged(own, "/".join(path)), path
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    by_hand = config.embed_dim * (2 * heads + 2 * kv_heads + config.mlp_dim * (2 + config.gated_mlp))
    assert config.layer_weights == by_hand


def flat_declarations(config):
    leaves = jax.tree.leaves_with_path(declare(config), is_leaf=lambda one: isinstance(one, Declaration))
    return {tuple(key.key for key in path): one for path, one in leaves}


@pytest.mark.parametrize("case", CONFIGS)
def test_weights_are_rounded_cut_cast_and_laid_out_as_before(case):
    config = CONFIGS[case]
    params, axes = random_params(config), models.axes(config)
    names_at = {path: tuple(names) for path, names in flat(axes).items()}

    @jax.jit
    def rounded_and_expected(params):
        expected = dict(flat(params))
        for path, w in expected.items():
            outputs = old_outputs(names_at[path])
            if outputs is not None:
                shared = tuple(i for i, n in enumerate(names_at[path]) if n not in ("layers", *outputs))
                least, most = (reduce(w, shared, keepdims=True) for reduce in (jnp.min, jnp.max))
                expected[path] = zeropoint(w, 4, least, most)
        return flat(quantize.quantize_weights(params, axes, quantize.SCHEMES["zeropoint4"])), expected

    rounded, expected = jax.device_get(rounded_and_expected(params))
    for path, w in expected.items():
        np.testing.assert_array_equal(rounded[path], w, err_msg=str(path))

    # Of arrays of ones what is left of each is a constant: its scale.
    L, half = config.num_layers, {"heads": 2, "kv_heads": config.num_kv_heads // 2, "mlp": 7}
    indices = {name: np.tile(np.arange(n), (L, 1, 1)) for name, n in half.items()}
    ones = jax.tree.map(lambda w: np.ones(w.shape, w.dtype), params)
    cut = jax.jit(lambda *x: [extract(x[0], axes, x[1], scale) for scale in (None, jnp.full(L, 3.0))])
    for branch_scale, found in zip((1, 3), jax.device_get(cut(ones, indices)), strict=True):
        for path, w in flat(found).items():
            names = names_at[path]
            scale = {True: 4.0 if "mlp" in names else 2.0, False: 1.0}[old_is_output(names)]
            scale *= branch_scale if old_is_output(names) else 1
            assert set(np.unique(w)) == {scale}, path

    layers, cast = flat(params["layers"]), lambda layers: cast_in_scan(layers, axes["layers"], "bfloat16")
    for path, w in flat_until(_Stack, jax.eval_shape(cast, params["layers"])).items():
        assert isinstance(w, _Stack) == (layers[path].ndim > 2), path

    if not config.causal:  # what does not decode is not laid out for it
        return
    for path, w in flat(models.for_decoding(config, params)["layers"][0]).items():
        assert w.dtype == ("bfloat16" if path in SUMMED else "float32"), path


def flat_until(kind, tree):
    leaves = jax.tree.leaves_with_path(tree, is_leaf=lambda node: isinstance(node, kind))
    return {tuple(key.key for key in path): leaf for path, leaf in leaves}


# What the rules by name and rank got wrong: products without "embed", from one width to another, with an
# axis that stacks experts; a gain of two axes.
NEW = {
    "by_head": AxisNames(("layers", "mlp", "heads"), inputs=("mlp",)),
    "wider": AxisNames(("layers", "embed", "embed2"), inputs=("embed",)),
    "expert": AxisNames(("layers", "experts", "mlp", "embed2"), inputs=("mlp",)),
    "turned": AxisNames(("layers", "mlp", "state", "embed2"), inputs=("mlp", "state")),
    "gain": AxisNames(("layers", "heads", "embed")),
}
SIZES = dict(layers=2, mlp=8, heads=4, embed=5, embed2=7, experts=3, state=2)
NEW_PARAMS = {
    name: np.random.default_rng(i).normal(size=[SIZES[axis] for axis in names]).astype("float32")
    for i, (name, names) in enumerate(NEW.items())
}


def test_a_weight_of_a_new_kind_is_what_it_is_declared_to_be():
    weights = {name: name != "gain" for name in NEW}
    assert decay_mask(NEW) == weights
    stacks = cast_in_scan(NEW_PARAMS, NEW, "bfloat16")
    assert {name: isinstance(w, _Stack) for name, w in stacks.items()} == weights
    large = jax.ShapeDtypeStruct((2, 1024, 1024), "float32")
    assert {name: _is_moved(names, large) for name, names in NEW.items()} == weights


def test_a_weight_of_a_new_kind_is_rounded_by_its_outputs():
    scheme, gain = quantize.SCHEMES["zeropoint4"], {"gain": NEW_PARAMS["gain"]}
    assert quantize.quantize_weights(gain, {"gain": NEW["gain"]}, scheme)["gain"] is gain["gain"]

    @jax.jit
    def rounded_and_expected(params):
        expected = {}
        for name, shared in {"by_head": 1, "wider": 1, "expert": 2, "turned": (1, 2)}.items():
            least, most = (reduce(params[name], shared, keepdims=True) for reduce in (jnp.min, jnp.max))
            expected[name] = zeropoint(params[name], 4, least, most)
        return quantize.quantize_weights(params, NEW, scheme), expected

    rounded, expected = rounded_and_expected(NEW_PARAMS)
    for name, w in expected.items():
        np.testing.assert_array_equal(rounded[name], w, err_msg=name)


def test_a_weight_of_a_new_kind_is_scaled_where_it_sums_over_units():
    indices = {"mlp": np.array([[[1, 5]]] * 2), "heads": np.array([[[0, 3]]] * 2)}
    ones = jax.tree.map(np.ones_like, NEW_PARAMS)
    cut = jax.jit(lambda *x: extract(x[0], NEW, *x[1:]))(ones, indices, np.full(2, 3.0, "float32"))
    shapes = {name: w.shape for name, w in cut.items()}
    assert shapes == {
        "by_head": (2, 2, 2), "wider": (2, 5, 7), "expert": (2, 3, 2, 7), "turned": (2, 2, 2, 7),
        "gain": (2, 2, 5),
    }  # fmt: skip
    # A quarter of the neurons is kept. None writes the residual stream: branch_scale leaves them alone.
    scales = {name: set(np.unique(w)) for name, w in cut.items()}
    assert scales == {"by_head": {4.0}, "wider": {1.0}, "expert": {4.0}, "turned": {4.0}, "gain": {1.0}}


def test_a_weight_of_a_new_kind_is_laid_out_and_multiplies(monkeypatch):
    config = models.get_preset("gpt2-nano")
    two = {name: NEW[name] for name in ("by_head", "turned", "gain")}
    monkeypatch.setattr(decoding_layout, "axes", lambda config: {"layers": {"block": two}})
    params = {"layers": {"block": {name: NEW_PARAMS[name] for name in two}}}
    for layer, block in enumerate(models.for_decoding(config, params)["layers"]):
        block = block["block"]
        for name, names in (("by_head", two["by_head"]), ("turned", two["turned"])):
            declared = {name: Declaration(NEW_PARAMS[name].shape[1:], names[1:], names.inputs)}
            x = jax.random.normal(jax.random.key(9), (1, 3, *[SIZES[axis] for axis in names.inputs]))
            dims = len(names.inputs)
            whole = NEW_PARAMS[name][layer]
            expected = np.tensordot(np.float64(x), np.float64(whole), dims)
            for w in (block[name], whole):
                np.testing.assert_allclose(linear(x, {name: w}, declared, name), expected, atol=1e-5)


def test_names_equal_plain_tuples_and_are_leaves_that_can_be_stored():
    names = AxisNames(("layers", "heads", "head_dim", "embed"), inputs=("heads", "head_dim"))
    assert names == tuple(names) and hash(names) == hash(tuple(names)) and names.outputs == ("embed",)
    assert jax.tree.leaves({"w": names}) == [names] and jax.tree.leaves({"w": names})[0].inputs
    for again in (pickle.loads(pickle.dumps(names)), copy.deepcopy(names)):
        assert type(again) is AxisNames and again == names and again.inputs == names.inputs
    with pytest.raises(UserError, match="'mlp' is none of the axes"):
        AxisNames(("embed", "heads"), inputs=("mlp",))
