"""The parts of the controlled experiment: learning and transfer, decoding, differences, counting, scorers."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments.opinion_mining.measures import (
    WAYS,
    against_truth,
    counted_rho,
    decoded,
    insights,
    parts,
    pooled,
    resample,
)
from experiments.opinion_mining.world import (
    OPINIONS,
    World,
    next_log_probs,
    opinion_shares,
    pretrain,
    tune_populations,
)
from jaxllm import models
from jaxllm.generate import SamplingConfig, generate
from jaxllm.measures import correct_shares
from jaxllm.score import polarisation

RATES = 0.9, 0.7, 0.3, 0.1  # of positive opinions, by class
ARMS = "pretrained", "scratch", "adapter"  # all trained after pretraining; without it; LoRA after it


class Controlled:
    """Bases and populations of one world, one a seed."""

    def __init__(self, world: World, config):
        self.world, self.config = world, config
        self.model = world.model(config.embed_dim, config.num_layers)
        self._bases: dict[str, dict] = {}

    def bases(self) -> dict:
        """Return a pretrained base a seed, stacked."""
        if not self._bases:
            texts = [
                self.world.encode(
                    self.world.neutral_sentences(self.config.neutral, np.random.default_rng([s, 1]))
                )
                for s in self.config.seeds
            ]
            self._bases = pretrain(self.model, np.stack(texts), self.config.pretrain_steps, self.config.seeds)
        return self._bases

    def fresh(self) -> dict:
        """Return bases that read nothing."""
        keys = jax.numpy.stack([jax.random.key(seed) for seed in self.config.seeds])
        return jax.vmap(lambda key: models.init(self.model, key))(keys)

    def tuned(self, arm: str, reads: Sequence[int]) -> list[dict]:
        """Return the parameters of one population a seed after each number of steps."""
        base = self.fresh() if arm == "scratch" else self.bases()
        rows = np.stack([self._opinions(seed)[0] for seed in self.config.seeds])
        rank = self.config.rank if arm == "adapter" else None
        return tune_populations(self.model, base, rows, reads, self.config.seeds, rank=rank)

    def _opinions(self, seed):
        return self.world.opinions(RATES, self.config.opinions, np.random.default_rng([seed, 2]))

    def shares(self, params) -> np.ndarray:
        """Return the exact read-out of stacked models, [R, templates, C, members, 3]."""
        return opinion_shares(self.world, next_log_probs(self.world, self.model, params))

    def learning(self) -> dict[str, Any]:
        """Return what every arm reads after each number of steps, and where validation says to stop."""
        found = {}
        for arm in ARMS:
            curve = [
                against_truth(self.world, self.shares(one), RATES)
                for one in self.tuned(arm, self.config.reads)
            ]
            best = int(np.argmin([np.mean(one["validation/mae"]) for one in curve]))
            found[arm] = {"curve": curve, "stop": self.config.reads[best], "stopped": curve[best]}
        untuned = against_truth(self.world, self.shares(self.bases()), RATES)
        found["untuned"] = {"no_opinion": untuned["seen/no_opinion"], "rho": untuned["seen/rho"]}
        return found

    def decoding(self, stop: int) -> dict[str, Any]:
        """Return slopes under each way of decoding, exactly, and by real samples of the first seed."""
        [params] = self.tuned("pretrained", (stop,))
        log_probs = next_log_probs(self.world, self.model, params)
        found: dict[str, Any] = {}
        for temperature, top_p in self.config.decoding:
            shares = opinion_shares(
                self.world, np.log(np.maximum(decoded(log_probs, temperature, top_p), 1e-300))
            )
            found[f"{temperature:g}, {top_p:g}"] = against_truth(self.world, shares, RATES)
        one = jax.tree.map(lambda x: x[0], params)
        counts, exact = self._sampled(one), opinion_shares(self.world, log_probs[:1])[0]
        apart = float(np.abs(counts - exact[:, :, : self.world.seen]).max())
        found["samples"] = {"largest_difference": apart,
                            "drawn_of_each": self.config.samples}  # fmt: skip
        return found

    def _sampled(self, params) -> np.ndarray:
        """Return shares of polarities among real samples at temperature 1, of seen members."""
        world, S = self.world, self.config.samples
        prompts = world.prompts.reshape(-1, world.classes, world.members, world.prompts.shape[1])
        prompts = prompts[:, :, : world.seen]
        flat = [row[: (row == 1).argmax() - 1].tolist() for row in prompts.reshape(-1, prompts.shape[-1])]
        polarity = {world.ids[word]: k for k, some in enumerate(OPINIONS.values()) for word in some}
        counts = np.zeros((len(flat), len(OPINIONS)))
        drawn = generate(
            self.model, params, [ids for ids in flat for _ in range(S)], max_new_tokens=1, tokens_per_call=1,
            sampling=SamplingConfig(), key=jax.random.key(9),
        ).tokens  # fmt: skip
        for row, tokens in enumerate(drawn):
            if tokens and tokens[0] in polarity:
                counts[row // S, polarity[tokens[0]]] += 1
        return counts.reshape(*prompts.shape[:3], -1) / S

    def counting(self, stop: int) -> dict[str, Any]:
        """Return errors of generating and of counting by how often a target is spoken of.

        Both read one corpus in which the seen members' shares fall tenfold and more; "by class" counts
        with the classes known, which the generator is not told.
        """
        world, config = self.world, self.config
        weights = np.geomspace(1, 0.004, world.seen)
        weights /= weights.sum()
        made = [
            world.opinions(RATES, config.rare_opinions, np.random.default_rng([s, 3]), weights)
            for s in config.seeds
        ]
        rows = np.stack([ids for ids, _ in made])
        [params] = tune_populations(self.model, self.bases(), rows, (stop,), config.seeds, rank=None)
        q = self.shares(params).mean(axis=1)
        written = polarisation(q[..., 2], q[..., 0])
        truth = np.asarray(RATES)[:, None]
        found: dict[str, Any] = {
            "texts_of_a_target": (config.rare_opinions / world.classes * weights).tolist()
        }
        by_way: dict[str, list] = {"generator": [], "counting": [], "counting by class": []}
        for number, (_, notes) in enumerate(made):
            counted = counted_rho(notes, world.classes, world.members)
            polar = notes[notes[:, 2] != 1]
            of_class = [np.mean(polar[polar[:, 0] == c, 2] == 2) for c in range(world.classes)]
            by_way["generator"].append(np.abs(written[number] - truth).mean(axis=0).tolist())
            by_way["counting"].append(np.abs(counted - truth).mean(axis=0).tolist())
            everywhere = np.repeat(np.abs(np.array(of_class) - RATES).mean(), world.members)
            by_way["counting by class"].append(everywhere.tolist())
        return found | {"errors": by_way}

    def scorer_error(self, stop: int) -> dict[str, Any]:
        """Return the bias of a scorer that errs in a known way, with and without correction, by seed."""
        [params] = self.tuned("pretrained", (stop,))
        q_RC3 = pooled(self.shares(params), parts(self.world)["seen"])
        q_RC3 = q_RC3 / q_RC3.sum(axis=-1, keepdims=True)
        confusion = np.array([[0.80, 0.15, 0.05], [0.20, 0.70, 0.10], [0.25, 0.15, 0.60]])
        draw, size = np.random.default_rng(4), 4000
        found: dict[str, list] = {"raw": [], "corrected": []}
        for q_C3 in q_RC3:
            # The matrix itself is estimated, from 600 annotated texts a class.
            known = draw.multinomial(600, confusion)
            raw, corrected = [], []
            for rate, q in zip(RATES, q_C3, strict=True):
                said = draw.multinomial(size, q @ confusion) / size
                raw.append(polarisation(said[2], said[0]) - rate)
                fixed = correct_shares(said, known)
                corrected.append(polarisation(fixed[2], fixed[0]) - rate)
            found["raw"].append(float(np.abs(raw).mean()))
            found["corrected"].append(float(np.abs(corrected).mean()))
        return found


class Differences:
    """Pairs of populations, of one base, that differ on some classes, or on none."""

    def __init__(self, world: World, config):
        self.world, self.config = world, config
        self.model = world.model(config.embed_dim, config.num_layers)
        draw = np.random.default_rng(5)
        text = world.encode(world.neutral_sentences(config.neutral, draw))
        stacked = pretrain(self.model, text[None], config.pretrain_steps, (config.seeds[0],))
        self.base = jax.tree.map(lambda x: x[0], stacked)

    def pair(self, number: int, differing: int) -> dict[str, Any]:
        """Return q-values of a pair of populations by way; the first `differing` classes differ."""
        world, config, R = self.world, self.config, self.config.refits
        draw = np.random.default_rng([number, 6, differing])
        base_rates = draw.choice([0.3, 0.5, 0.7], size=world.classes)
        moved = np.where(base_rates < 0.5, 0.3, -0.3) * (np.arange(world.classes) < differing)
        rows, seeds = [], []
        for population, rates in enumerate((base_rates, base_rates + moved)):
            corpus, _ = world.opinions(rates, config.opinions, draw)
            rows += [resample(corpus, draw) for _ in range(R)]
            seeds += [1000 * number + 100 * population + r for r in range(R)]
        [params] = tune_populations(
            self.model,
            self.base,
            np.stack(rows),
            (config.difference_steps,),
            seeds,
            rank=config.rank,
            one_base=True,
        )
        shares = opinion_shares(world, next_log_probs(world, self.model, params))
        found = {}
        for name in ("seen", "held_out"):
            q = insights(shares[:R], shares[R:], parts(world)[name], config.difference_samples, draw)
            found |= {f"{name}/{way}": q[way].tolist() for way in WAYS}
        return found


def judge_pairs(pairs: list[dict], differing: int, level: float) -> dict[str, float]:
    """Return precision and recall of reported classes, and the share of pairs that report a false one."""
    found = {}
    for key in pairs[0]:
        reported = np.array([pair[key] for pair in pairs]) < level
        true = np.arange(reported.shape[1]) < differing
        found[f"{key}/any_false"] = int(reported[:, ~true].any(axis=1).sum())
        shares = [row[~true].sum() / max(1, row.sum()) for row in reported]
        found[f"{key}/false_share"] = float(np.mean(shares))
        if differing:
            found[f"{key}/recall"] = float(reported[:, true].mean())
    return found
