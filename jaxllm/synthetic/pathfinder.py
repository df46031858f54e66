"""Pathfinder: are two discs joined by one dashed path, or do they end two?

Linsley et al., arXiv 1805.08315; pixel by pixel a long-range task (Tay et al., arXiv 2011.04006). By the
published rules an image holds two long paths of as many dashes, and distractors of a third as many; a path
turns a little from dash to dash, and paths keep a distance. Discs stand at both ends of one long path, or at
one end of each: but for where the discs are, both kinds of image are drawn alike.

This draws by those rules; the published images, of other sizes of dashes and with more distractors, are
files of their own.
"""

import math
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np

from jaxllm.config import Config, Count, CountOrZero, Positive, Range
from jaxllm.errors import UserError

_FINER = 4  # an image is drawn with so many times the rows, and averaged
_TURNS = 6  # of a dash that are tried
_TRIES = 40  # of a path, before the image is begun anew
_BEGINNINGS = 100  # of an image


@dataclass(frozen=True)
class PathfinderConfig(Config):
    """How images are drawn; lengths are in pixels."""

    size: Annotated[int, Range(8, 1024)] = 32  # rows and columns
    dashes: Count = 6  # of a long path: 6, 9 and 14 are published difficulties
    distractors: CountOrZero = 6  # paths of a third as many dashes
    dash: Positive = 2.0  # length
    gap: Positive = 1.0  # between dashes of a path
    margin: Positive = 2.0  # between paths
    turn: Annotated[float, Range(0, 180)] = 35.0  # degrees from one dash to the next, at most
    disc: Positive = 1.5  # radius


class Pathfinder(NamedTuple):
    """Images and whether the discs of each are joined."""

    images_NHW: np.ndarray  # uint8
    joined_N: np.ndarray  # bool


def draw_pathfinder(config: PathfinderConfig, images: int, seed: int) -> Pathfinder:
    """Return images, half of them joined on average: a pure function of its arguments.

    Raises:
      UserError: the paths do not fit an image.

    Examples:
      >>> drawn = draw_pathfinder(PathfinderConfig(size=16, dashes=3, distractors=2), 2, seed=0)
      >>> drawn.images_NHW.shape, drawn.images_NHW.max()
      ((2, 16, 16), np.uint8(255))
    """
    draw = np.random.default_rng(seed)
    joined_N = draw.random(images) < 0.5
    drawn = [_image(config, draw, bool(joined)) for joined in joined_N]
    return Pathfinder(np.stack(drawn), joined_N)


def _image(config, draw, joined):
    short = max(1, config.dashes // 3)
    for _ in range(_BEGINNINGS):
        taken = np.zeros((0, 2))
        paths = []
        for dashes in (config.dashes, config.dashes, *[short] * config.distractors):
            path = _path(config, draw, dashes, taken, ends=len(paths) < 2)
            if path is None:
                break
            paths.append(path)
            taken = np.concatenate([taken, *path])
        else:
            one, other = (paths[n] for n in draw.permutation(2))
            ends = [one[0][0], one[-1][-1]] if joined else [_end(one, draw), _end(other, draw)]
            discs = [_disc(config, at) for at in ends]
            return _render(config, np.concatenate([taken, *discs]))
    raise UserError(
        f"two paths of {config.dashes} dashes and {config.distractors} distractors do not fit an image of "
        f"{config.size} x {config.size}; give fewer or shorter ones, a smaller margin or a larger image"
    )


def _end(path, draw):
    return path[0][0] if draw.random() < 0.5 else path[-1][-1]


def _path(config, draw, dashes, taken, *, ends):
    """Return a path's points, dash by dash, that keep the margin from those taken; None: none was found.

    Ends of a long path keep room for a disc, whether one will stand there or not.
    """
    edge = config.disc + 0.5
    for _ in range(_TRIES):
        at, angle = draw.uniform(edge, config.size - edge, 2), draw.uniform(0, 2 * math.pi)
        path: list[np.ndarray] = []
        for number in range(dashes):
            room = config.margin + config.disc * (ends and number in (0, dashes - 1))
            found = _dash(config, draw, at, angle, path, taken, room, edge)
            if found is None:
                break
            angle, points = found
            path.append(points)
            at = points[-1]
        else:
            return path
    return None


def _dash(config, draw, at, angle, path, taken, room, edge):
    """Return (direction, points) of a dash that keeps away from what is there; None: there is none."""
    steps = np.arange(0, config.dash + 1e-9, 1 / _FINER)[:, None] + (config.gap if path else 0)
    own = np.concatenate([np.zeros((0, 2)), *path[:-1]])  # but the dash before, a gap away
    for _ in range(_TURNS if path else 1):
        turned = angle + (draw.uniform(-1, 1) * math.radians(config.turn) if path else 0)
        points = at + steps * np.array([math.sin(turned), math.cos(turned)])
        if points.min() < edge or points.max() > config.size - edge:
            continue
        if _nearest(points, taken) >= room and _nearest(points, own) >= config.margin:
            return turned, points
    return None


def _nearest(points, others) -> float:
    if not len(others):
        return math.inf
    return float(np.sqrt(((points[:, None] - others[None]) ** 2).sum(-1).min()))


def _disc(config, centre):
    side = np.arange(-config.disc, config.disc + 1e-9, 1 / (2 * _FINER))
    offsets = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    return centre + offsets[(offsets**2).sum(-1) <= config.disc**2]


def _render(config, points):
    fine = np.zeros((config.size * _FINER,) * 2)
    rows, columns = np.clip((points * _FINER).astype(int), 0, len(fine) - 1).T
    for down in (0, 1):  # two fine rows and columns thick, so that a dash shows
        for right in (0, 1):
            fine[np.minimum(rows + down, len(fine) - 1), np.minimum(columns + right, len(fine) - 1)] = 1
    pixels = fine.reshape(config.size, _FINER, config.size, _FINER).mean(axis=(1, 3))
    return np.minimum(255, np.round(255 * 2 * pixels)).astype(np.uint8)
