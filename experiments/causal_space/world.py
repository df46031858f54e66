"""An invented world whose map is known, and small GPTs trained on text about it that never says a coordinate.

Cities lie on a sphere; countries are the cells around random centres, regions the cells within countries.
Text says that a city is in its country, near another, north (south, east, west) of another. Of the cities of
some regions no text says the country: whoever names it has placed them by their neighbours. A peer is trained
on the same sentences with a random city in place of each: the same words, and no map.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import optax

from experiments.causal_space.places import Places
from experiments.shared.word_tokenizer import word_tokenizer
from jaxllm import interpret, models, train
from jaxllm.data import Tokenizer

_WORDS = ". is in near of north south east west".split()
AFTER = " is in"
_LENGTH = 7  # of the longest sentence and the token that ends one


class World(NamedTuple):
    """A map."""

    places: Places
    unsaid: np.ndarray  # bool [N]: no text says the city's country
    lands: np.ndarray  # the names of all countries


def make_world(cities: int, countries: int, seed: int) -> World:
    """Return a world of single-word names."""
    draw = np.random.default_rng([seed, 50])
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    spell = lambda count, size, end: [
        ("".join(draw.choice(syllables, size)) + end).capitalize() for _ in range(count)
    ]
    names = np.array(list(dict.fromkeys(spell(3 * cities, 3, "")))[:cities])
    lands = np.array(list(dict.fromkeys(spell(9 * countries, 2, "nia")))[:countries])
    vectors = draw.normal(size=(cities, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cell = lambda centres: np.argmax(
        vectors @ (centres / np.linalg.norm(centres, axis=1, keepdims=True)).T, 1
    )
    country, region = cell(draw.normal(size=(countries, 3))), cell(draw.normal(size=(5 * countries, 3)))
    regions = np.array([f"{a}-{b}" for a, b in zip(country, region, strict=True)])
    places = Places(names, regions, lands[country], vectors)
    return World(places, interpret.held_out_groups(regions, 0.2, seed + 1000), lands)


def world_tokenizer(world: World, folder: Path) -> Tokenizer:
    """Write a tokenizer of the world's words into a folder and return it."""
    return word_tokenizer([*_WORDS, *world.places.names, *world.lands], folder)


def sentences(world: World, words: Tokenizer, seed: int, size: int, shuffled: bool) -> Iterator[dict]:
    """Yield batches {"tokens", "targets", "mask"} [size, 7 - 1] of one sentence a row, without end."""
    draw = np.random.default_rng([seed, 51])
    places, word = world.places, lambda text: int(words.encode(text)[0])
    city_N = np.array([word(name) for name in places.names])
    country_N = np.array([word(name) for name in places.countries])
    lat, lng = (np.radians(x) for x in interpret.degrees(places.vectors))
    nearness = places.vectors @ places.vectors.T - 2 * np.eye(len(lat))
    order = np.argsort(-nearness, axis=1)
    is_, in_, near, of, stop = map(word, ("is", "in", "near", "of", "."))
    north, south, east, west = map(word, ("north", "south", "east", "west"))
    said = np.flatnonzero(~world.unsaid)
    while True:
        kind = draw.integers(3, size=size)
        one = np.where(kind == 0, draw.choice(said, size), draw.integers(len(lat), size=size))
        other = np.where(
            kind == 1,
            order[one, draw.integers(6, size=size)],
            order[one, draw.integers(len(lat) // 4, size=size)],
        )
        up = lat[one] - lat[other]
        right = (lng[one] - lng[other] + np.pi) % (2 * np.pi) - np.pi
        right = right * np.cos((lat[one] + lat[other]) / 2)
        way = np.where(
            np.abs(up) > np.abs(right), np.where(up > 0, north, south), np.where(right > 0, east, west)
        )
        if shuffled:
            one, other = draw.integers(len(lat), size=(2, size))
        zeros, ones = np.zeros(size, int), np.ones(size, int)
        made = np.choose(kind[:, None], [
            np.stack([zeros, city_N[one], is_ * ones, in_ * ones, country_N[one if not shuffled else
                      draw.permutation(one)], stop * ones, zeros], 1),
            np.stack([zeros, city_N[one], is_ * ones, near * ones, city_N[other], stop * ones, zeros], 1),
            np.stack([zeros, city_N[one], is_ * ones, way, of * ones, city_N[other], stop * ones], 1),
        ])  # fmt: skip
        mask = np.ones((size, _LENGTH - 1), np.float32)
        mask[kind < 2, -1] = 0
        yield {"tokens": made[:, :-1].astype(np.int32), "targets": made[:, 1:].astype(np.int32), "mask": mask}


def train_world(
    world: World, words: Tokenizer, model: models.ModelConfig, run: train.RunConfig, *, shuffled: bool
) -> dict:
    """Return the parameters after `run.steps` steps, or those that a finished run in `run.out` has."""

    def loss(params, batch, key):
        del key
        return models.loss(model, params, batch["tokens"], batch["targets"], mask=batch["mask"])

    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, 50, max(run.steps, 51), 1e-4)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.05))
    batches = partial(sentences, world, words, run.seed, 256, shuffled)
    task = train.Task(partial(models.init, model), models.axes(model), batches, loss)
    return train.train(task, run, optimizer=optimizer).params
