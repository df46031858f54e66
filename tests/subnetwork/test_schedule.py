"""Stages: what they save by a count of our own, where they end, and what the rivals keep."""

import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.models import get_preset
from jaxllm.subnetwork import (
    Rates,
    Schedule,
    Stage,
    check_schedule,
    evolving,
    get_schedule,
    progressive_layer_drop,
    random_paths,
    savings,
    shrink,
)


def block_flops(config, seq_len, layers=1.0, heads=1.0, mlp=1.0):
    """The paper's blocks, forward and backward, a token: attention's and MLP's products alone."""
    d, k = config.embed_dim, config.head_dim
    queries, keys = heads * config.num_heads, heads * config.num_kv_heads
    projections = 2 * d * k * (2 * queries + 2 * keys)
    scores = 4 * queries * seq_len * k
    neurons = 2 * (3 if config.gated_mlp else 2) * d * config.mlp_dim * mlp
    return 3 * layers * config.num_layers * (projections + scores + neurons)


@pytest.mark.parametrize(
    "model, name, published",
    [("gpt2", "est-gpt2-like", 0.2667), ("tinyllama-1.1b", "est-tinyllama-like", 0.25)],
)
def test_the_named_schedules_save_what_the_paper_says_of_the_blocks_and_less_of_the_whole(
    model, name, published
):
    config, T = get_preset(model), 1024
    schedule = get_schedule(name, config.num_layers, steps=300)
    saved = savings(config, schedule, T, steps=300)
    whole, wide, small = (
        block_flops(config, T), block_flops(config, T, 1, 0.5, 0.5), block_flops(config, T, 0.5, 0.5, 0.5)
    )  # fmt: skip
    first, second, last = schedule.ends(300)
    used = (first * small + (second - first) * wide + (last - second) * whole) / 300
    assert saved.blocks == pytest.approx(1 - used / whole, rel=1e-9)
    assert saved.blocks == pytest.approx(published, abs=1e-4)
    head = 6 * config.embed_dim * config.vocab_size
    assert saved.step == pytest.approx((whole - used) / (whole + head), rel=1e-9)
    assert saved.step < saved.blocks


def test_the_stages_are_the_three_of_the_paper():
    stages = evolving(0.25, 0.5, rate=0.75).stages
    assert [stage.rates for stage in stages] == [Rates(0.75, 0.75, 0.75), Rates(1, 0.75, 0.75), Rates()]
    assert evolving(0.25, 0.5).ends(1000) == [250, 500, 1000]


def test_progressive_layer_drop_keeps_fewer_layers_later_and_deeper():
    """The depth and time profile of arXiv 2010.13369, adjusted to whole numbers of layers."""
    stages = progressive_layer_drop(12, 1000, gamma=0.004, stages=4).stages
    config = get_preset("gpt2")
    kept = [shrink(config, stage.rates).num_layers for stage in stages]
    wanted = [12 - 0.5 * (1 - np.exp(-4 * (i + 0.5) / 4)) * 6.5 for i in range(4)]
    assert kept == [round(w) for w in wanted] and kept[0] > kept[-1]
    for stage in stages:
        drop = 1 - np.array(stage.rates.layers)
        np.testing.assert_allclose(drop / drop[-1], np.arange(1, 13) / 12)


def test_random_paths_grow_to_all_layers_and_always_hold_the_ends():
    config = get_preset("gpt2")
    stages = random_paths(12).stages
    assert [shrink(config, stage.rates).num_layers for stage in stages] == [6, 8, 10, 12]
    for stage in stages[:-1]:
        assert stage.rates.layers[0] == stage.rates.layers[-1] == 1 and max(stage.rates.layers[1:-1]) < 1


@pytest.mark.parametrize("name", ["est-gpt2-like", "progressive-layer-drop", "layer-dropout", "random-paths"])
@pytest.mark.parametrize("num_layers", [2, 6, 12])
def test_named_schedules_fit_models_of_even_depth(name, num_layers):
    check_schedule(get_preset("gpt2-micro", num_layers=num_layers), get_schedule(name, num_layers, 100))


BAD = {
    "stages end at 0.4, 0.2, 1; each must end after": lambda: evolving(0.4, 0.2),
    "stages end at 0.2, 0.9; each must end": lambda: Schedule((Stage(0.2, Rates()), Stage(0.9, Rates()))),
    "stages end at nothing": lambda: Schedule(()),
    "unknown layer_scale 'invers'; did you mean 'inverse'": lambda: Schedule(
        (Stage(1.0, Rates()),), layer_scale="invers"
    ),
    "unknown subnetwork schedule 'est-gpt-like'": lambda: get_schedule("est-gpt-like", 12, 100),
    "rates.heads=0.5 of 3 heads is 1.5": lambda: check_schedule(
        get_preset("gpt2-nano", num_heads=3, head_dim=16), evolving(0.2, 0.4)
    ),
    "in each of 8 shards is 0.5": lambda: check_schedule(
        get_preset("gpt2-nano", num_heads=8), evolving(0.2, 0.4), shards=8
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_bad_schedules_are_refused(message):
    with pytest.raises(UserError, match=message):
        BAD[message]()
