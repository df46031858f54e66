"""What a variant changes in a run, and the claims on figures made up for them."""

import dataclasses

import numpy as np
import pytest

from experiments import cheaper_training as cheaper
from jaxllm.errors import UserError
from jaxllm.train import to_dict


def test_a_variant_changes_what_it_names_and_nothing_else():
    config = cheaper.PRESETS["small"]()
    plain = to_dict(cheaper.run_config(config, cheaper.PLAIN))
    changed = {
        part: {k for k, v in to_dict(cheaper.run_config(config, part)).items() if v != plain[k]} - {"out"}
        for part in (*cheaper.PARTS, cheaper.ALL)
    }
    assert changed == {
        "est": {"subnetwork"}, "groups": {"vocab_groups", "model"}, "orthoadam": {"optim"},
        "sr": {"precision", "optim"},
        cheaper.ALL: {"subnetwork", "vocab_groups", "model", "precision", "optim"},
    }  # fmt: skip
    assert plain["subnetwork"] is plain["vocab_groups"] is None and plain["optim"]["name"] == "adamw"


@pytest.mark.parametrize(("loss", "holds"), [(3.03, True), (3.2, False)])
def test_costs_are_shares_of_the_first_variant_s(loss, holds):
    config = dataclasses.replace(
        cheaper.PRESETS["debug"](), steps=10, variants=("plain", cheaper.ALL), schedule="est-gpt2-like"
    )
    runs = {variant: cheaper.run_config(config, variant) for variant in config.variants}
    found = {
        "plain": [dict(loss=3.0, flops=[1e15]), dict(loss=3.001, flops=[1e15])],
        cheaper.ALL: [dict(loss=loss, flops=[1e14, 2e14, 5e14])] * 2,
    }
    seconds = {"plain": [1.0], cheaper.ALL: [0.1, 0.2, 2.0]}
    peaks = {("plain", "cpu"): 2**30, (cheaper.ALL, "cpu"): 2**29}
    metrics, claims, table = cheaper.judge(config, runs, found, seconds, peaks)
    ends = [round(20 / 150 * 10), round(70 / 150 * 10), 10]
    petaflops = (ends[0] * 1e14 + (ends[1] - ends[0]) * 2e14 + (10 - ends[1]) * 5e14) / 1e15
    took = ends[0] * 0.1 + (ends[1] - ends[0]) * 0.2 + (10 - ends[1]) * 2.0
    assert metrics[f"petaflops/{cheaper.ALL}"] == pytest.approx(petaflops)
    quality, flops, time, memory = claims
    assert quality.holds == holds and quality.measured == pytest.approx(np.mean([loss / 3, loss / 3.001]) - 1)
    assert (flops.measured, flops.holds) == (pytest.approx(petaflops / 10), True)
    assert (time.measured, time.holds) == (pytest.approx(took / 10), False)
    assert (memory.measured, memory.holds) == (0.5, True)
    assert f"| {cheaper.ALL} | {loss:.4f} |" in table


def test_bad_variants_are_named():
    config = cheaper.PRESETS["debug"]()
    for changes, sentence in (
        (dict(variants=("plain", "est+lora")), "unknown part of a variant: 'lora'"),
        (dict(variants=("plain",)), r"variants is \('plain',\); give two or more"),
        (dict(seeds=(1,)), r"seeds is \(1,\); give two or more"),
    ):
        with pytest.raises(UserError, match=sentence):
            dataclasses.replace(config, **changes)
