"""What one model knows of where places are, and whether what a probe reads of it is used."""

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.causal_space.exchange import published_edits
from experiments.causal_space.places import Places, Prompts, prompts, spoken
from jaxllm import interpret, models
from jaxllm.data import Tokenizer
from jaxllm.errors import UserError

ARMS = interpret.MatchedEdits._fields
CONTROLS = ARMS[1:]
WAYS = ("towards", "away", "relocate")
SPLITS = ("cities", "regions", "countries")  # held out at random, with their region, with their country
PENALTIES = (1e-2, 1e-1, 1.0, 10.0)


class Subject(NamedTuple):
    """A model, and how it is asked about places."""

    name: str
    config: models.ModelConfig
    params: dict
    tokenizer: Tokenizer
    places: Places
    after: str  # of a place, up to its country
    before: str = ""
    with_region: bool = True  # of the place's string

    @property
    def reads_on(self) -> bool:
        """Whether it can say what comes next: an encoder cannot."""
        return self.config.why_not_decode is None

    def prompts(self) -> Prompts:
        """Return a prompt a place."""
        return prompts(self.tokenizer, self.places.texts(self.with_region), self.before, self.after)

    def country_ids(self) -> list[list[int]]:
        """Return all tokens of each place's country, as they follow the prompt."""
        ids = {
            name: self.tokenizer.encode(f" {spoken(name)}").tolist() for name in set(self.places.countries)
        }
        return [ids[name] for name in self.places.countries]


class EditSettings(NamedTuple):
    """Which edits are made."""

    depths: tuple[int, ...]
    displacements: tuple[float, ...]
    cities: int
    batch: int = 24


def read_states(subject: Subject, path: Path | None = None, tokens_per_batch: int = 4096) -> np.ndarray:
    """Return the state at every depth of the last token of each place, [L + 1, N, D]."""
    asked = subject.prompts()
    rows = asked.rows
    if subject.reads_on:  # what comes later is not seen
        rows = [row[: at + 1] for row, at in zip(rows, asked.entity, strict=True)]
    spans = [(at, at + 1) for at in asked.entity.tolist()]
    options = dict(tokens_per_batch=tokens_per_batch, path=path, progress=True)
    return interpret.pooled_states(subject.config, subject.params, rows, spans, **options)


def held_out(places: Places, split: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (which places are held out, bool [N]; each place's group, which folds keep whole)."""
    regions = np.array([f"{a}/{b or n}" for a, b, n in zip(places.countries, places.regions, places.names,
                                                         strict=True)])  # fmt: skip
    groups = {"cities": np.arange(len(regions)), "regions": regions, "countries": places.countries}[split]
    return interpret.held_out_groups(groups.tolist(), 0.2, seed), groups


def probe_scores(
    states_PND: np.ndarray, places: Places, depths: Sequence[int], seed: int, mlp_epochs: int = 0
) -> dict[str, Any]:
    """Return {split: {"r2", "km", "shuffled_r2" a depth}} of ridge probes, MLPs too if they have epochs."""
    found: dict[str, Any] = {"depths": list(depths)}
    for split in SPLITS:
        held, groups = held_out(places, split, seed)
        known, lines = ~held, {"r2": [], "km": [], "shuffled_r2": []}
        targets = places.vectors
        dealt = np.random.default_rng([seed, 60]).permutation(targets[known])
        for depth in depths:
            fit = interpret.fit_ridge(
                states_PND[depth][known], targets[known], groups=groups[known], penalties=PENALTIES
            )
            said = fit.probe(states_PND[depth][held])
            null = interpret.fit_ridge(states_PND[depth][known], dealt, penalties=(fit.penalty,)).probe
            lines["r2"].append(interpret.r_squared(said, targets[held]))
            lines["km"].append(float(np.median(interpret.great_circle_km(said, targets[held]))))
            lines["shuffled_r2"].append(interpret.r_squared(null(states_PND[depth][held]), targets[held]))
        if mlp_epochs and split != "cities":
            some = list(depths)[:: max(1, len(depths) // 4)]
            probes = interpret.fit_mlp(
                states_PND[some][:, known], targets[known], epochs=mlp_epochs, seed=seed
            )
            lines["mlp_depths"], lines["mlp_r2"], lines["mlp_km"] = some, [], []
            for at, depth in enumerate(some):
                said = jax.tree.map(lambda w, at=at: w[at], probes)(states_PND[depth][held])
                lines["mlp_r2"].append(interpret.r_squared(said, targets[held]))
                lines["mlp_km"].append(float(np.median(interpret.great_circle_km(said, targets[held]))))
        found[split] = lines
    return found


def predictions(states_ND: np.ndarray, places: Places, split: str, seed: int) -> dict[str, list]:
    """Return (predicted, true) degrees of the held-out places, by a ridge probe: what the map shows."""
    held, groups = held_out(places, split, seed)
    fit = interpret.fit_ridge(
        states_ND[~held], places.vectors[~held], groups=groups[~held], penalties=PENALTIES
    )
    told = interpret.degrees(places.vectors[held]), interpret.degrees(fit.probe(states_ND[held]))
    return {
        name: [x.round(2).tolist() for x in pair] for name, pair in zip(("true", "said"), told, strict=True)
    }


def exchanged(states_ND: np.ndarray, places: Places, seed: int, steps: int = 100) -> dict[str, dict]:
    """Return how far the paper's own edits move places that its probe has not seen."""
    held, _ = held_out(places, "regions", seed)
    known, rows = ~held, np.flatnonzero(held)
    fit = interpret.fit_ridge(states_ND[known], places.vectors[known], penalties=PENALTIES)
    rows = np.random.default_rng([seed, 65]).permutation(rows)[:200]
    return published_edits(fit.probe, states_ND[rows], places.vectors[rows], steps)


def similarities(
    states_PND: np.ndarray, places: Places, depths: Sequence[int], most: int, permutations: int, seed: int
) -> dict[str, Any]:
    """Return {measure: {"score", "p", "null" a depth}} of the most populous places."""
    vectors = places.vectors[:most]
    km = interpret.great_circle_km(vectors[:, None], vectors[None])
    km = (km + km.T) / 2
    chords = np.linalg.norm(vectors[:, None] - vectors[None], axis=-1)
    found: dict[str, Any] = {"depths": list(depths), "places": len(vectors)}
    for measure in ("spearman", "pearson", "cka"):
        each = [
            interpret.similarity(
                states_PND[depth][:most], chords if measure == "cka" else km, measure=measure,
                permutations=permutations, seed=seed,
            ) for depth in depths
        ]  # fmt: skip
        found[measure] = {
            "score": [one.score for one in each], "p": [one.p_value for one in each],
            "null": [float(np.mean(one.null)) for one in each],
        }  # fmt: skip
    biggest = min(most, 100)  # as the paper's figure, which is of the last layer
    one = interpret.similarity(
        states_PND[depths[-1]][:biggest], km[:biggest, :biggest], measure="kendall",
        permutations=min(permutations, 100), seed=seed,
    )  # fmt: skip
    with_diagonal = (one.score * (biggest - 2) + 2) / biggest  # 2 / n of a row's pairs
    found["kendall"] = {"score": one.score, "p": one.p_value, "with_diagonal": with_diagonal}
    return found


def edited(subject: Subject, states_PND: np.ndarray, settings: EditSettings, seed: int) -> dict[str, Any]:
    """Return what edits of held-out places' states do to the next word and to a classifier.

    Returns:
      {"before": {figure: [n]}, "country": [n], "edits": a list of {"depth", "displacement", "way", "arm",
      figure: [n]}}. Figures: name, the log-probability of all tokens of the country's name (of the place's
      own, or with way="relocate" of that whose coordinates it was given); greedy, whether all of them are the
      likeliest; template, of the prompt's own next tokens, which say nothing of a place; classified, whether
      a classifier at the end names the country, with the blocks between, and classified_here, at once.
    """
    if not subject.reads_on:
        raise UserError(
            f"{subject.name} is an encoder, which says no next word; leave it to probes and similarity"
        )
    held, _ = held_out(subject.places, "regions", seed)
    draw, asked = np.random.default_rng([seed, 61]), subject.prompts()
    lengths = np.array([len(row) for row in asked.rows])
    short = lengths <= np.quantile(lengths[held], 0.9)  # all are padded to the longest
    chosen = draw.permutation(np.flatnonzero(held & short))[: settings.cities]
    chosen = chosen[: max(2, len(chosen) // 2 * 2)]
    known, places = ~held, subject.places
    lands, land_N = np.unique(places.countries, return_inverse=True)
    own_K = subject.country_ids()
    # Each takes the coordinates of a place of another country, where there is one.
    elsewhere = [chosen[land_N[chosen] != land_N[row]] for row in chosen]
    partner = np.array([draw.choice(some) if len(some) else row
                        for row, some in zip(chosen, elsewhere, strict=True)])  # fmt: skip
    readers = _Readers(subject, states_PND, settings.depths, known, land_N, seed)
    longest = max(len(own_K[row]) for row in chosen)  # one shape for all batches
    T = -(-(max(len(asked.rows[row]) for row in chosen) + longest) // 4) * 4
    before: dict[str, list] = {}
    edits: list[dict] = []
    starts = range(0, len(chosen), settings.batch)
    for start in tqdm(starts, desc=f"{subject.name}: edits", unit=" batches"):
        rows = chosen[start : start + settings.batch]
        fill = np.resize(rows, settings.batch)  # the last batch is filled up with its own
        to = np.resize(partner[start : start + settings.batch], settings.batch)
        for named, ways in ((fill, WAYS[:2]), (to, WAYS[2:])):
            batch = _Batch.of(subject, asked, fill, [own_K[row] for row in named], T, longest)
            streams = _streams(subject.config, subject.params, batch.tokens_BT)
            at_entity = np.arange(len(fill)), batch.entity_B
            unedited = np.stack([np.asarray(streams[-1])[at_entity]] * 3)
            prefix = "relocate_" if ways == WAYS[2:] else ""
            for name, values in batch.read(readers, subject.config.num_layers, streams[-1], unedited).items():
                before.setdefault(prefix + name, []).extend(values[0, : len(rows)].tolist())
            for depth, displacement in itertools.product(settings.depths, settings.displacements):
                kept: dict[str, Any] = {}
                for way in ways:
                    moved = interpret.matched_edits(
                        readers.probes[depth], readers.shuffled[depth], np.asarray(streams[depth])[at_entity],
                        places.vectors[named], displacement, key=jax.random.key(seed + start),
                        away=way == "away",
                    )  # fmt: skip
                    # What is drawn at random is the same towards and away: run once.
                    arms = ARMS[:3] if way == "away" else ARMS
                    moved = np.stack(moved[: len(arms)])
                    after = batch.read(readers, depth, streams[depth], moved)
                    after["classified"] = after.pop("land") == land_N[named]
                    after["classified_here"] = readers.classifiers[depth](moved).argmax(-1) == land_N[named]
                    new = {arm: {name: value[at, : len(rows)].tolist() for name, value in after.items()}
                           for at, arm in enumerate(arms)}  # fmt: skip
                    kept = kept | new
                    for arm, figures in kept.items():
                        key = dict(depth=depth, displacement=displacement, way=way, arm=arm)
                        edits.append(key | figures)
    before["classified"] = (np.array(before.pop("land")) == land_N[chosen]).tolist()
    before.pop("relocate_land")
    return {"before": before, "country": places.countries[chosen].tolist(), "edits": _joined(edits),
            "countries": len(lands)}  # fmt: skip


def _joined(edits: list[dict]) -> list[dict]:
    """Return the edits with the batches of each put together, in the order of the places."""
    found: dict[tuple, dict] = {}
    for one in edits:
        key = one["depth"], one["displacement"], one["way"], one["arm"]
        if key not in found:
            found[key] = dict(one)
            continue
        for name, values in one.items():
            if isinstance(values, list):
                found[key][name] = found[key][name] + values
    return list(found.values())


class _Readers:
    """What is fitted to places that are not edited: probes, the same of dealt-out targets, classifiers."""

    def __init__(self, subject, states_PND, depths, known, land_N, seed):
        fit = functools.partial(interpret.fit_ridge, penalties=PENALTIES)
        targets = subject.places.vectors[known]
        dealt = np.random.default_rng([seed, 62]).permutation(targets)
        one_hot = np.eye(land_N.max() + 1)[land_N[known]]
        self.probes, self.shuffled, self.classifiers = {}, {}, {}
        for depth in depths:
            x_ND = states_PND[depth][known]
            found = fit(x_ND, targets)
            self.probes[depth] = found.probe
            self.shuffled[depth] = interpret.fit_ridge(x_ND, dealt, penalties=(found.penalty,)).probe
            self.classifiers[depth] = fit(x_ND, one_hot, num_folds=2).probe
        last_N1D, config = jnp.asarray(states_PND[-1][known])[:, None], subject.config
        final_N1D = interpret.forward_from(config, subject.params, config.num_layers, last_N1D)
        self.final = fit(np.asarray(final_N1D)[:, 0], one_hot, num_folds=2).probe


class _Batch(NamedTuple):
    """Prompts with the names that are scored after them."""

    subject: Subject
    tokens_BT: np.ndarray
    entity_B: np.ndarray
    template_B: np.ndarray  # how many of the prompt's tokens follow the place
    name_B: np.ndarray  # of how many tokens the name is
    most: int

    @classmethod
    def of(cls, subject, asked, rows, names, T, most) -> "_Batch":
        whole = [[*asked.rows[row], *name][:T] for row, name in zip(rows, names, strict=True)]
        tokens_BT = np.zeros((len(rows), T), np.int32)
        for place, ids in enumerate(whole):
            tokens_BT[place, : len(ids)] = ids
        entity_B = asked.entity[rows]
        template_B = np.array([len(asked.rows[row]) for row in rows]) - 1 - entity_B
        return cls(subject, tokens_BT, entity_B, template_B, np.array([len(name) for name in names]), most)

    def read(self, readers: _Readers, depth: int, stream_BTD, moved_ABD) -> dict[str, np.ndarray]:
        """Return {figure: [A, B]} after the states at the places' last tokens were exchanged."""
        places = self.entity_B, self.template_B, self.name_B
        found = _read(self.subject.config, int(self.template_B.max()) + self.most, self.subject.params, depth,
                      stream_BTD, moved_ABD, self.tokens_BT, places, readers.final)  # fmt: skip
        return jax.device_get(found)


@functools.partial(jax.jit, static_argnums=0)
def _streams(config, params, tokens_BT) -> jax.Array:
    sites = models.Sites(("embed", "resid_post"))
    seen = models.capture(config, params, tokens_BT, sites)[1]
    return jnp.concatenate([seen["embed"][None], seen["resid_post"]])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _read(config, K, params, depth, stream_BTD, moved_ABD, tokens_BT, places, classifier):
    """Run on from states whose entity is exchanged; score the K tokens after it."""
    entity_B, template_B, name_B = places
    B, T = tokens_BT.shape
    every_B = jnp.arange(B, dtype=jnp.int32)
    step_K = jnp.arange(K, dtype=jnp.int32)
    at_BK = jnp.minimum(entity_B[:, None] + step_K, T - 2)
    target_BK = jnp.take_along_axis(jnp.asarray(tokens_BT), at_BK + 1, axis=1)
    in_template_BK = step_K < template_B[:, None]
    in_name_BK = (step_K >= template_B[:, None]) & (step_K < (template_B + name_B)[:, None])

    def of_arm(moved_BD):
        states_BTD = stream_BTD.at[every_B, entity_B].set(moved_BD.astype(stream_BTD.dtype))
        hidden_BTD = interpret.forward_from(config, params, depth, states_BTD)
        logits_BKV = models.logits(config, params, hidden_BTD[every_B[:, None], at_BK])
        logit_BK = jnp.take_along_axis(logits_BKV, target_BK[..., None], axis=-1)[..., 0]
        log_prob_BK = logit_BK - jax.nn.logsumexp(logits_BKV, axis=-1)
        best_BK = logit_BK >= jnp.max(logits_BKV, axis=-1)
        land_B = jnp.argmax(classifier(hidden_BTD[every_B, entity_B].astype(jnp.float32)), axis=-1)
        return {
            "name": jnp.sum(log_prob_BK, axis=1, where=in_name_BK),
            "greedy": jnp.all(best_BK, axis=1, where=in_name_BK),
            "template": jnp.mean(log_prob_BK, axis=1, where=in_template_BK),
            "land": land_B,
        }

    return jax.lax.map(of_arm, jnp.asarray(moved_ABD))
