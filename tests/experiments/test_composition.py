"""What cannot be combined is said before anything is compiled; texts are kept apart; debug runs end."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import composition
from experiments.composition import penalty, policy, runs, softmax1
from experiments.composition.llama import llama
from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.pretrained import save_pretrained
from jaxllm.text import TrainConfig, prepare
from tests.models.random_params import random_params

EVERY_DEVICE = True
PARTS = softmax1.parts(composition.PRESETS["debug"](), 32)
HYBRID = models.HybridConfig(parts=PARTS, blocks=2, remat="full")
GROUPED = models.get_preset("llama-nano", vocab_size=64, vocab_groups=models.VocabGroups.of(np.arange(64)))


@pytest.fixture
def config(tmp_path):
    config = dataclasses.replace(composition.PRESETS["debug"](), out=str(tmp_path))
    runs.write_texts(config.out, config.paragraphs)
    return config


@pytest.mark.parametrize(
    "combine, said",
    [
        (lambda: TrainConfig(model=HYBRID, offload="state"), "set model.blocks to 1, or offload"),
        (lambda: TrainConfig(model=HYBRID, subnetwork="est-gpt2-like"), "architecture is hybrid"),
        (lambda: dataclasses.replace(HYBRID, vocab_groups=GROUPED.vocab_groups), "a hybrid's is its parts'"),
        (lambda: save_pretrained("never", GROUPED, {}), "fit a dense head to it with vocabulary"),
    ],
    ids=["hybrid-streamed-in-blocks", "hybrid-subnetworks", "hybrid-groups", "groups-exported"],
)
def test_what_cannot_be_combined_is_said_in_one_sentence(combine, said):
    with pytest.raises(UserError, match=said):
        combine()


def test_penalties_on_layers_that_are_skipped_in_host_memory_are_refused_while_traced(config, caplog):
    with jax.log_compiles(), pytest.raises(UserError, match="^activations cannot be captured"):
        penalty.streamed_penalty(config)
    assert not [one for one in caplog.messages if "jit(step)" in one and "XLA compilation" in one]


def test_the_penalised_loss_of_a_subnetwork_is_the_loss_and_the_attention_that_copies(config):
    """Against the definition: the largest weight of any head on what followed each earlier occurrence."""
    run = penalty._small_run(config, "plain", 0, None)
    model = prepare(run, devices=jax.devices()[:1]).model
    params = random_params(model)
    rows = np.random.default_rng(0).integers(0, 257, (2, 25)).astype(np.int32)
    batch = {"tokens": rows[:, :-1], "targets": rows[:, 1:], "mask": np.ones((2, 24), np.float32),
             "segment_ids": np.zeros((2, 24), np.int32)}  # fmt: skip
    key = jax.random.key(3)
    plain, with_it = (
        jax.jit(penalty.penalised_loss(model, weight))(params, batch, key)[0] for weight in (0.0, 2.0)
    )
    spans = penalty.interpret.draw_repeated_spans(key, 2, 24, 257, **penalty._PERIODS)
    sites = models.Sites(capture=("attn_probs",))
    capture = jax.jit(lambda params, tokens: models.capture(model, params, tokens, sites))
    probs_LBHTT = np.asarray(capture(params, spans.tokens_BT)[1]["attn_probs"])
    total = sum(
        probs_LBHTT[:, b, :, i, j].max()
        for b, period in enumerate(spans.period_B.tolist())
        for i in range(24) for j in range(i + 1) if (i + 1 - j) % period == 0
    )  # fmt: skip
    assert with_it - plain == pytest.approx(2 * total / 48, rel=1e-4)


def test_no_held_out_paragraph_is_trained_on_and_no_modern_one_either(config):
    def read(name):
        return {json.loads(line)["text"] for line in open(f"{config.out}/{name}.jsonl", encoding="utf-8")}

    files = [read(name) for name in ("old", "old-held-out", "modern", "modern-held-out")]
    assert all(files) and sum(map(len, files)) == len(set.union(*files))
    assert len(set.union(*files)) == len(runs.paragraphs(config.paragraphs))


def test_state_is_counted_where_it_lies(config):
    """AdamW in float32: three arrays of 4 bytes a parameter, an eighth of them on each of eight devices."""
    run = runs.text_run(config, "counted", 0, model=llama(config))
    one = prepare(run, devices=jax.devices()[:1]).shapes
    eight = prepare(dataclasses.replace(run, mesh=dataclasses.replace(run.mesh, fsdp=8))).shapes
    count = sum(np.prod(x.shape) for x in jax.tree.leaves(one.params))
    assert runs._bytes(one) == (pytest.approx(12 * count, abs=100), 0)
    assert 12 * count / 8 <= runs._bytes(eight)[0] < 12 * count / 6


def test_claims_follow_from_the_figures():
    found = runs.Finding()
    found.claim("below", [0.9, 0.91, 0.92], below=1)
    found.claim("crosses", [0.5, 1.5], below=1)
    found.exact("no difference", [0.0, 2e-6], 1e-6)
    assert [one.holds for one in found.claims] == [True, None, False]
    assert found.claims[2].measured == 2e-6


def test_a_report_holds_what_combinations_found_and_they_are_not_run_again(config, monkeypatch):
    runs_of_it = []

    def found(config):
        runs_of_it.append(config)
        finding = runs.Finding({"loss": 1.5}, refused={"this and that": "it does not go; leave it out"})
        finding.claim("loss", [1.4, 1.5, 1.6], below=2)
        return finding

    monkeypatch.setitem(composition.COMBINATIONS, "llama", found)
    config = dataclasses.replace(config, combinations=("llama",))
    for report in (composition.main(config), composition.main(config)):
        assert report.metrics == {"llama/loss": 1.5} and report.claims[0].claim == "llama: loss"
        assert report.claims[0].verdict == "holds"
        assert "it does not go; leave it out" in report.to_markdown(config.out)
    assert len(runs_of_it) == 1


def test_unknown_combinations_are_named():
    with pytest.raises(UserError, match="unknown combination 'lama'; did you mean 'llama'"):
        composition.CompositionConfig(combinations=("lama",))


@pytest.mark.slow
def test_token_by_token_a_hybrid_with_softmax_1_says_the_same():
    gpt, mamba = (dataclasses.replace(part, vocab_size=64) for part in PARTS)
    model = models.HybridConfig(parts=(dataclasses.replace(gpt, sink_logit=0.0), mamba), blocks=2)
    params = random_params(model)
    tokens = np.random.default_rng(0).integers(0, 64, (2, 8)).astype(np.int32)
    assert softmax1.cache_difference(model, params, tokens) < 1e-5
    softmax = models.HybridConfig(parts=(gpt, mamba), blocks=2)
    read = [models.trunk(one, params, tokens) for one in (model, softmax)]
    assert jnp.abs(read[0] - read[1]).max() > 1e-4


TAKEN = "{}: the penalty takes off attention that copies, of the whole model, a token"
COSTS = "under subnetworks the penalty costs at most 2 % of held-out loss"
COPIES, LOSS = "attention_that_copies/", "heldout_loss/"
ROSE = "adamw_bf16_sr: the tagger's log-probability of the drawn marks rises by"
AS_FAR = "its rise less float32 AdamW's, at least -0.2"
FIGURES = {
    f"{COPIES}plain": 0.5, f"{COPIES}penalty": 0.2, f"{COPIES}subnetworks": 0.4,
    f"{COPIES}subnetworks, penalty": 0.3, f"{LOSS}plain": 9.0, f"{LOSS}penalty": 9.0,
    f"{LOSS}subnetworks": 2.0, f"{LOSS}subnetworks, penalty": 2.02,
    "rise/adamw_bf16_sr": 0.5, "rise/float32": 0.6,
}  # fmt: skip


@pytest.mark.parametrize(
    "changes, broken",
    [
        ({}, None),
        ({f"{COPIES}penalty": 0.6}, TAKEN.format("plain")),
        ({f"{COPIES}subnetworks, penalty": 0.6}, TAKEN.format("subnetworks")),
        ({f"{LOSS}subnetworks, penalty": 2.06}, COSTS),
        ({"rise/adamw_bf16_sr": -0.1, "rise/float32": 0.0}, ROSE),
        ({"rise/float32": 0.8}, AS_FAR),
    ],
)
def test_claims_of_the_penalty_and_the_policy_are_on_their_own_figures(monkeypatch, config, changes, broken):
    measured = lambda config, seed: {key: x + seed / 1000 for key, x in (FIGURES | changes).items()}
    monkeypatch.setattr(penalty, "_penalised", measured)
    monkeypatch.setattr(policy, "_rises", measured)
    for module, name in (
        (penalty, "_penalised_job"), (penalty, "prepare"), (penalty, "refusal"), (policy, "_generator"),
        (policy, "policy_job"), (runs.Finding, "costs"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, lambda *_, **__: (None, {}))
    claims = penalty.penalised_subnetworks(config).claims + policy.policy_in_bfloat16(config).claims
    expected = {TAKEN.format("plain"): 0.3, TAKEN.format("subnetworks"): 0.1, COSTS: 0.01, ROSE: 0.5005,
                AS_FAR: -0.1}  # fmt: skip
    assert [claim.claim for claim in claims] == list(expected)
    if broken:
        assert {claim.claim: claim.holds for claim in claims if claim.holds is not True} == {broken: False}
    else:
        assert [claim.measured for claim in claims] == pytest.approx(list(expected.values()), abs=1e-5)
        assert all(claim.holds for claim in claims)


@pytest.mark.slow
@pytest.mark.parametrize(  # the others take minutes
    "name, claims, exact", [("llama", 8, 2), ("policy", 2, 0), ("softmax1", 3, 1), ("penalty", 3, 0)]
)
def test_the_debug_run_of_each_combination_ends_in_a_report(name, claims, exact, tmp_path):
    config = dataclasses.replace(composition.PRESETS["debug"](), combinations=(name,), out=str(tmp_path))
    composition.main(config)
    report = json.loads((tmp_path / "report.json").read_text())
    assert all(key.startswith(f"{name}/") for key in report["metrics"])
    said = [claim for claim in report["claims"] if ", at most " in claim["claim"]]
    assert len(report["claims"]) == claims and len(said) == exact and all(claim["holds"] for claim in said)
