"""A Llama trained with four systems on eight devices, and what is done with it afterwards."""

import dataclasses
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from experiments.composition.runs import (
    Finding,
    hidden_states,
    is_modern,
    over_seeds,
    paragraphs,
    refusal,
    text_run,
    with_optimizer,
)
from jaxllm import models
from jaxllm.adapt import LoraConfig, PerDocumentConfig, adapt_and_score
from jaxllm.data import start_id
from jaxllm.generate import Decoder
from jaxllm.interpret import fit_ridge, held_out_groups, pooled_states, r_squared
from jaxllm.parallel import MeshConfig
from jaxllm.pretrained import from_pretrained, save_pretrained
from jaxllm.pretrained.load import Pretrained
from jaxllm.retrieve import Encoder, build_store, load_index, recall, search
from jaxllm.score import (
    FewShotPrompt,
    FewShotTask,
    divide_by_prior,
    keep_as_given,
    macro_auroc,
    sample_inputs,
)
from jaxllm.text import TrainConfig, evaluate, load_run, prepare, train
from jaxllm.train import Trained
from jaxllm.train.writers import read_metrics
from jaxllm.vocabulary import to_dense_head

ALL, ONE, PLAIN = "all, 8 devices", "all, 1 device", "plain"
_EIGHT = MeshConfig(data=2, fsdp=4)  # with tensor=2 other subnetworks are drawn: half of each shard
_LORA = LoraConfig(rank=8, targets="all")
_NEIGHBOURS = 4
_TASK = FewShotTask(("Line", "Era"), ("old", "new"))


class Arm(NamedTuple):
    """A way to train the Llama, and on which devices."""

    run: TrainConfig
    devices: list


def llama(config) -> models.ModelConfig:
    """Return the model: an even number of heads, so that a subnetwork can have half of them."""
    return models.get_preset(
        "llama-nano", vocab_size=None, num_layers=config.layers, embed_dim=config.width, num_heads=8,
        num_kv_heads=4, mlp_dim=4 * config.width, context_length=1024,
    )  # fmt: skip


def arms(config, seed: int) -> dict[str, Arm]:
    """Return the combination on eight devices, on one, and the plain run."""
    plain = text_run(config, "llama-plain", seed, model=llama(config))
    combined = with_optimizer(plain, "orthoadam_bf16_sr")
    combined = dataclasses.replace(
        combined, subnetwork="est-gpt2-like", vocab_groups="merge_order",
        model=dataclasses.replace(plain.model, group_head="own"),
        out=str(Path(config.out, "llama-one", f"seed-{seed}")),
    )  # fmt: skip
    sharded = dataclasses.replace(
        combined, mesh=_EIGHT, out=str(Path(config.out, "llama-all", f"seed-{seed}"))
    )
    one = jax.devices()[:1]
    return {ALL: Arm(sharded, jax.devices()), ONE: Arm(combined, one), PLAIN: Arm(plain, one)}


def trained_llama(config) -> Finding:
    """Train, export, tune, probe and calibrate; each beside a model without the four."""
    found, of = over_seeds(config, _trained)
    found.claim("four systems at once: held-out loss at most 5 % above the plain run's, more by",
                of[f"heldout_loss/{ALL}"] / of[f"heldout_loss/{PLAIN}"] - 1, at_most=0.05)  # fmt: skip
    found.claim("training losses on 8 devices within 1 % of one device's, largest difference of any step",
                of["sharded_differs"], at_most=0.01)  # fmt: skip
    found.exact("exported and read again: the dense head's logits differ by", of["exported_differs"], 1e-5)
    for arm in (ALL, PLAIN):
        found.claim(f"{arm}: LoRA takes off held-out nats a token of modern addresses",
                    of[f"modern_loss/{arm}"] - of[f"modern_loss/{arm}, tuned"], above=0)  # fmt: skip
    found.claim(f"{ALL}: a probe's R2 of a paragraph's year above an untrained model's, by",
                of[f"year_r2/{ALL}"] - of["year_r2/untrained"], above=0)  # fmt: skip
    found.exact("dividing by the model's own prior moves the AUROC by", of["auroc_differs"], 1e-9)
    found.claim("and takes off the labels' distance from balance",
                of["distance_from_balance/as given"] - of["distance_from_balance/calibrated"],
                above=0)  # fmt: skip
    some = arms(config, config.seeds[0])
    found.costs({arm: prepare(one.run, devices=one.devices) for arm, one in some.items()}, config.rounds)
    found.refused["a head of groups, exported as it is"] = refusal(
        lambda: save_pretrained(Path(config.out, "export"), *load_run(some[ALL].run.out))
    )
    return found


def _trained(config, seed: int) -> dict[str, float]:
    runs = {arm: train(one.run, devices=one.devices) for arm, one in arms(config, seed).items()}
    found = {f"heldout_loss/{arm}": run.evaluation["loss"] for arm, run in runs.items()}
    curves = [_curve(runs[arm].run.config.out) for arm in (ALL, ONE)]
    found["sharded_differs"] = float(np.abs(curves[0] / curves[1] - 1).max())
    model = load_run(runs[ALL].run.config.out)
    found["nats_that_a_dense_head_loses"], found["exported_differs"] = export(model, seed, config)
    for arm in (PLAIN, ALL):
        base = runs[arm].run.config.out
        tuned = tune(config, base, seed)
        untuned = tuned.run.init(jax.random.key(0)).params  # an adapter that changes nothing yet
        found |= {
            f"modern_loss/{arm}": evaluate(tuned.run, untuned, max_batches=16)["loss"],
            f"modern_loss/{arm}, tuned": tuned.evaluation["loss"],
            f"year_r2/{arm}": probe(load_run(base), config, seed),
        }
    fresh = model._replace(params=models.init(model.config, jax.random.key(seed)))
    found["year_r2/untrained"] = probe(fresh, config, seed)
    return found | calibrate(load_run(tuned.run.config.out), config, seed)


def _curve(folder) -> np.ndarray:
    return np.array([row["loss"] for row in read_metrics(folder) if "loss" in row])


def export(model: Pretrained, seed: int, config) -> tuple[float, float]:
    """Return (nats that the dense head nearest to the groups loses, difference of logits once read again)."""
    some = [one.text for one in paragraphs(config.paragraphs) if not one.held_out][:64]
    hidden_ND = hidden_states(*model, some, config.seq_len // 2)
    dense, params, divergence = to_dense_head(model.config, model.params, hidden_ND)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(Path(folder, "model"), dense, params, model.tokenizer)
        types = dict(dtype=dense.dtype, param_dtype=dense.param_dtype)
        again, read, _ = from_pretrained(Path(folder, "model"), **types)
    tokens = np.random.default_rng(seed).integers(0, dense.vocab_size, (2, 16)).astype(np.int32)
    apply = jax.jit(models.apply, static_argnums=0)
    difference = apply(dense, params, tokens) - apply(again, read, tokens)
    return divergence, float(abs(difference).max())


def tune(config, base: str, seed: int) -> Trained:
    """Train an adapter of a run's model on modern addresses."""
    run = text_run(
        config, f"{Path(base).parent.name}-tuned", seed, era="modern", steps=config.tune_steps, start=base,
        lora=_LORA, precision=load_run(base).config.param_dtype,
    )  # fmt: skip
    return train(run, devices=jax.devices()[:1])


def tuned_llama(config, seed: int) -> Pretrained:
    """Return the combination's model with its adapter, trained unless it was."""
    sharded = arms(config, seed)[ALL]
    train(sharded.run, devices=sharded.devices)
    return load_run(tune(config, sharded.run.out, seed).run.config.out)


def probe(model: Pretrained, config, seed: int) -> float:
    """Return the R2 of a ridge probe of paragraphs' years, on addresses that it did not see."""
    some = paragraphs(config.paragraphs)
    some = some[:: max(1, len(some) // 300)]
    rows = [ids[: config.seq_len] for ids in model.tokenizer.encode_batch([one.text for one in some])]
    years = np.array([one.year for one in some], np.float64)
    spans, depth = [(0, len(ids)) for ids in rows], model.config.num_layers // 2
    x_ND = pooled_states(model.config, model.params, rows, spans, depths=[depth])[0]
    y_N1 = ((years - years.mean()) / years.std())[:, None]
    held = held_out_groups(years.tolist(), share=0.3, seed=seed)
    fit = fit_ridge(x_ND[~held], y_N1[~held], groups=years[~held], seed=seed)
    return r_squared(fit.probe(x_ND[held]), y_N1[held])


def calibrate(model: Pretrained, config, seed: int) -> dict[str, float]:
    """Return what division by the model's own prior does to labels of lines: how old are they?"""
    draw = np.random.default_rng(seed)
    lines = {
        era: [line for one in paragraphs(config.paragraphs) for line in one.text.split("\n")
              if is_modern(one) == era and 20 <= len(line) <= 50]
        for era in (False, True)
    }  # fmt: skip
    picked = [[str(line) for line in draw.choice(lines[era], 3 + config.documents)] for era in (False, True)]
    exemplars = [([picked[0][n]], 0) for n in range(3)] + [([picked[1][0]], 1)]  # more old ones than new
    prompt = FewShotPrompt(Decoder(model.config, model.params), model.tokenizer, _TASK, exemplars)
    asked = [[line] for some in picked for line in some[3:]]
    gold = np.repeat([0, 1], config.documents)
    given = prompt.label_log_probs(asked)
    drawn = sample_inputs(
        prompt, config.documents, key=jax.random.key(seed), max_new_tokens=96, most_rejected=10_000
    )
    found = [keep_as_given(given), divide_by_prior(given, drawn.prior())]
    before, after = (macro_auroc(one, gold) for one in found)
    far = [float(abs(np.exp(one)[:, 0].mean() - 0.5)) for one in found]
    return {
        "auroc": before, "auroc_differs": abs(after - before), "distance_from_balance/as given": far[0],
        "distance_from_balance/calibrated": far[1],
    }  # fmt: skip


def trained_at_test_time(config) -> Finding:
    """Train LoRA adapters of the tuned Llama on neighbours from a store of int8 vectors of its own."""
    found, of = over_seeds(config, _at_test_time)
    near = of["bits_after_over_before/int8 store"]
    found.claim("bits of a document after its neighbours over before, LoRA, int8 store", near, below=1)
    found.claim("the int8 store's ratio within 1 % of the float32 store's",
                near / of["bits_after_over_before/float32 store"] - 1,
                at_least=-0.01, at_most=0.01)  # fmt: skip
    found.claim("and below that of random texts, by",
                of["bits_after_over_before/random texts"] - near, above=0)  # fmt: skip
    return found


def _at_test_time(config, seed: int) -> dict[str, float]:
    model, every = tuned_llama(config, seed), paragraphs(config.paragraphs)
    texts = [one.text for one in every if not one.held_out]
    asked = [one.text for one in every if one.held_out and is_modern(one)][: config.documents]
    encoder = Encoder(*model, longest=config.seq_len)
    folder, queries, ids = Path(config.out, "stores"), encoder.embed(asked), {}
    for kind in ("int8", "float32"):
        store = build_store(folder, encoder, texts, dtype=kind)
        ids[kind] = search(load_index(store), queries, _NEIGHBOURS).ids
    ids["random"] = np.random.default_rng(seed).integers(0, len(texts), ids["int8"].shape)
    lora = PerDocumentConfig(
        learning_rate=config.learning_rate / 3, trained="lora", lora=_LORA, window=config.seq_len,
        most_chunks=2,
    )  # fmt: skip
    whole = dataclasses.replace(lora, trained="all", learning_rate=2e-5)
    found = {"recall_of_the_int8_store": recall(ids["int8"], ids["float32"])}
    cases = {
        "int8 store": ("int8", lora), "float32 store": ("float32", lora), "random texts": ("random", lora),
        "int8 store, all weights": ("int8", whole),
    }  # fmt: skip
    for name, (kind, how) in cases.items():
        done = _adapt(model, asked, [[texts[i] for i in row] for row in ids[kind]], how)
        before, after = done.log_probs.sum(axis=0)
        found[f"bits_after_over_before/{name}"] = after / before
        found[f"step_ms/{name}"] = 1e3 * done.seconds / max(1, done.steps.sum())
    return found


def _adapt(model: Pretrained, documents, neighbours, how: PerDocumentConfig):
    begin, words = start_id(model.tokenizer), model.tokenizer
    encode = lambda texts: [list(map(int, ids)) for ids in words.encode_batch(list(texts))]
    return adapt_and_score(
        model.config, model.params, [[begin, *ids] for ids in encode(documents)],
        [encode(some) for some in neighbours], how, after=(0, _NEIGHBOURS),
    )  # fmt: skip
