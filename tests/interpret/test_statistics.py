"""Outliers and the sink of whole models, against values captured and reduced in NumPy."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from jaxllm import models, parallel
from jaxllm.errors import UserError
from jaxllm.interpret import activation_statistics
from tests.models.random_params import random_params

T = 24


def random_model(family, **changes):
    values = dict(num_layers=4, embed_dim=32, num_heads=4)
    config = models.get_preset(family, **(values | changes))
    return config, random_params(config, scale=0.3)


def text(rows, seed=0):
    random = np.random.default_rng(seed)
    segments = np.sort(random.integers(0, 3, (rows, T)), axis=1)
    return {"tokens": random.integers(0, 256, (rows, T)), "segment_ids": segments - segments[:, :1]}


def reduced_in_numpy(config, params, batch):
    """Return the means that `activation_statistics` should find, from attention weights in full."""
    tokens, segments = batch["tokens"], batch.get("segment_ids")
    sites = models.Sites(capture=("attn_probs", "resid_post"))
    seen = jax.jit(lambda p: models.capture(config, p, tokens, sites, segment_ids=segments)[1])(params)
    probs, x = (np.asarray(seen[name], np.float64) for name in ("attn_probs", "resid_post"))
    segments = np.zeros(tokens.shape, int) if segments is None else segments
    start_BT = np.array([[np.argmax(row == number) for number in row] for row in segments])
    first_BT = start_BT == np.arange(T)
    centred = x - x.mean(-1, keepdims=True)
    kurtosis_LBT = (centred**4).mean(-1) / (centred**2).mean(-1) ** 2
    max_LBT = np.abs(x).max(-1)
    argmax, mass = np.zeros((2, config.num_layers, config.num_heads))
    for layer in range(config.num_layers):
        window = config.windows[layer % len(config.windows)] or T
        reach_BT = np.arange(T) - start_BT
        counts_BT = (reach_BT > 0) & (reach_BT < window)
        on_first = np.take_along_axis(probs[layer], start_BT[:, None, :, None], axis=-1)[..., 0]
        best = probs[layer].argmax(-1) == start_BT[:, None]
        argmax[layer] = [best[:, head][counts_BT].mean() for head in range(config.num_heads)]
        mass[layer] = [on_first[:, head][counts_BT].mean() for head in range(config.num_heads)]
    return {
        "kurtosis_first": kurtosis_LBT[:, first_BT].mean(1),
        "kurtosis_other": kurtosis_LBT[:, ~first_BT].mean(1),
        "max_first": max_LBT[:, first_BT].mean(1),
        "max_other": max_LBT[:, ~first_BT].mean(1),
        "sink_argmax": argmax,
        "sink_mass": mass,
    }


def agree(found, expected):
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=2e-5, atol=1e-6, err_msg=name)


@pytest.mark.smoke
@pytest.mark.parametrize(
    "family, sink, packed",
    [
        ("gpt2-nano", -math.inf, True),
        ("gpt-neo-nano", 0.0, True),
        ("llama-nano", "learned", False),
        ("bert-nano", 0.0, True),
        ("deberta-nano", -math.inf, True),
    ],
)
def test_means_are_those_of_the_whole_attention_weights(family, sink, packed):
    windows = {"windows": (0, 5)} if family == "gpt-neo-nano" else {}
    config, params = random_model(family, sink_logit=sink, **windows)
    batch = text(3)
    if not packed:
        del batch["segment_ids"]
    agree(activation_statistics(config, params, [batch]), reduced_in_numpy(config, params, batch))


def test_batches_are_weighed_by_their_tokens():
    """Two batches whose documents begin at different places: a mean of means would be wrong."""
    config, params = random_model("gpt2-nano")
    batch = text(4)
    batch["segment_ids"][2:] = 0
    halves = [{name: value[rows] for name, value in batch.items()} for rows in np.split(np.arange(4), 2)]
    agree(activation_statistics(config, params, iter(halves)), reduced_in_numpy(config, params, batch))


def test_a_sharded_model_has_the_same_statistics():
    config, params = random_model("llama-nano")
    batch = text(8)
    alone = activation_statistics(config, params, [batch])
    mesh = parallel.make_mesh(parallel.MeshConfig(data=2, fsdp=2, tensor=2))
    sharded = jax.device_put(params, parallel.shardings(models.axes(config), params, mesh))
    agree(activation_statistics(config, sharded, [batch]), dataclasses.asdict(alone))


def test_a_layer_without_a_choice_is_left_out_of_the_summary():
    config, params = random_model("gpt-neo-nano", windows=(0, 1))
    found = activation_statistics(config, params, [text(2)])
    assert np.isnan(found.sink_mass[1::2]).all() and np.isfinite(found.sink_mass[::2]).all()
    assert found.summary()["sink_mass"] == pytest.approx(found.sink_mass[::2].mean())


def test_nothing_to_read_is_said_so():
    config, params = random_model("gpt2-nano")
    with pytest.raises(ValueError, match="no batches"):
        activation_statistics(config, params, [])


def test_what_is_no_transformer_is_refused():
    mamba = models.get_preset("mamba-nano")
    for config in (mamba, models.HybridConfig(parts=(models.get_preset("gpt2-nano"), mamba))):
        with pytest.raises(UserError, match=f"sink is of transformers, and .* is {config.architecture};"):
            activation_statistics(config, {}, [])
