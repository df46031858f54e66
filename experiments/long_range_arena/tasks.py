"""The Long Range Arena's kinds of tasks, from generators by its rules and from real files.

| task | items | difficulty |
|---|---|---|
| listops | drawn (`jaxllm.synthetic`), and the 10,000 original test items | depth of lists |
| pathfinder | drawn | dashes of a path |
| reviews | whole film reviews as bytes, positive or negative (Pang and Lee), in place of IMDb's | length |
| digits | MNIST's 10,000 test digits as pixels, 8,000 to train on | the digit |

Nothing of the files belongs to this repository; `experiments.shared.real_data` says where they lie.
"""

import dataclasses
import functools
import gzip
import lzma
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np

from experiments.shared.real_data import data_folder
from jaxllm.config import Config, Count, Range
from jaxllm.errors import UserError
from jaxllm.synthetic import (
    ListOps,
    ListOpsConfig,
    PathfinderConfig,
    draw_listops,
    draw_pathfinder,
    evaluate_listops,
    read_listops,
)
from jaxllm.synthetic import listops as listops_ids

TASKS = ("listops", "pathfinder", "reviews", "digits")
_SIDE = 28  # pixels of a digit's side
_BYTES = 129  # ids of the reviews: ASCII, and one for padding, as the paper's table has it


class Labelled(NamedTuple):
    """Sequences to be labelled as a whole; padding is on the right."""

    inputs_NT: np.ndarray  # int32
    last_N: np.ndarray  # int32, where the last token that is no padding stands
    labels_N: np.ndarray  # int32
    difficulty_N: np.ndarray  # int32, what accuracy is split by

    def rows(self, chosen) -> "Labelled":
        """Return some of the sequences."""
        return Labelled(*(x[chosen] for x in self))


@dataclass(frozen=True)
class LongRangeTask(Config):
    """A task at a size. The defaults are small; `PUBLISHED` has the paper's."""

    name: Literal[TASKS]
    train: Count = 2000
    test: Count = 500
    listops: ListOpsConfig = ListOpsConfig(shortest=10, longest=64, most_arguments=5, depth=4)
    pathfinder: PathfinderConfig = PathfinderConfig(size=16, distractors=2)
    dashes: tuple[Count, ...] = (2, 3, 4)  # of paths, as many images of each
    longest: Count = 512  # bytes of a review that are read
    shrink: Annotated[int, Range(1, 14)] = 2  # of a digit's sides, by means of squares of pixels

    def __post_init__(self):
        super().__post_init__()
        if not self.dashes:
            raise UserError("dashes is empty; give one length of a path or more, such as 6 9")
        if _SIDE % self.shrink:
            raise UserError(f"shrink is {self.shrink}; it must divide {_SIDE}, the side of a digit")

    @property
    def vocab_size(self) -> int:
        """How many ids a token may have."""
        return {"listops": listops_ids.VOCAB_SIZE, "reviews": _BYTES}.get(self.name, 256)

    @property
    def classes(self) -> int:
        """How many labels there are."""
        return 10 if self.name in ("listops", "digits") else 2

    @property
    def length(self) -> int:
        """How many tokens a sequence has, padding included."""
        match self.name:
            case "listops":
                return self.listops.longest
            case "pathfinder":
                return self.pathfinder.size**2
            case "reviews":
                return self.longest
        return (_SIDE // self.shrink) ** 2


PUBLISHED = {
    "listops": LongRangeTask("listops", train=96_000, test=2000, listops=ListOpsConfig()),
    "pathfinder": LongRangeTask(
        "pathfinder", train=160_000, test=20_000,
        pathfinder=PathfinderConfig(size=32, distractors=8), dashes=(6, 9),
    ),
    "reviews": LongRangeTask("reviews", train=1600, test=400, longest=2048),
    "digits": LongRangeTask("digits", train=8000, test=2000, shrink=1),
}  # fmt: skip


def load_task(task: LongRangeTask, seed: int) -> tuple[Labelled, Labelled]:
    """Return (what is trained on, what is tested on); a test's items are in no training set.

    Raises:
      UserError: a task of real files whose files are not there, or are not what they should be.
    """
    match task.name:
        case "listops":
            every = _padded(draw_listops(task.listops, task.train + task.test, seed), task.length)
        case "pathfinder":
            every = _shuffled(_draw_paths(task, seed), task, seed)
        case "reviews":
            every = _shuffled(read_reviews(task.longest), task, seed)
        case "digits":
            images_NHW, labels_N = read_digits(data_folder("manticore", "mnist_10k"))
            side = _SIDE // task.shrink
            small = images_NHW.reshape(-1, side, task.shrink, side, task.shrink).mean(axis=(2, 4))
            every = _shuffled(_images(small.astype(np.uint8), labels_N, labels_N), task, seed)
    return every.rows(slice(0, task.train)), every.rows(slice(task.train, task.train + task.test))


def _draw_paths(task: LongRangeTask, seed: int) -> Labelled:
    each = -(-(task.train + task.test) // len(task.dashes))
    kinds = []
    for dashes in task.dashes:
        drawn = draw_pathfinder(dataclasses.replace(task.pathfinder, dashes=dashes), each, seed)
        kinds.append(_images(drawn.images_NHW, drawn.joined_N, np.full(each, dashes)))
    return Labelled(*(np.concatenate(columns) for columns in zip(*kinds, strict=True)))


def _shuffled(found: Labelled, task: LongRangeTask, seed: int) -> Labelled:
    if len(found.labels_N) < task.train + task.test:
        raise UserError(
            f"{task.name} has {len(found.labels_N):,} items, and {task.train:,} to train on and "
            f"{task.test:,} to test on are asked for; lower either"
        )
    return found.rows(np.random.default_rng([seed, 1]).permutation(len(found.labels_N)))


def original_listops(longest: int) -> Labelled:
    """Return the original test items of no more than so many tokens, their labels checked by evaluation.

    Raises:
      UserError: the file is not there, or a label is not its expression's value.
    """
    found = []
    path = data_folder("manticore", "listops", "test_d20s.tsv.xz")
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            label, _, text = line.rstrip("\n").partition("\t")
            tokens = read_listops(text)
            value, depth = evaluate_listops(tokens) if len(tokens) > 1 else (tokens[0], 0)
            if label != str(value):
                raise UserError(
                    f"an item of test_d20s.tsv.xz is labelled '{label[:20]}' and comes to {value}; take the "
                    "file of the commit that its SOURCE.md names"
                )
            if len(tokens) <= longest:
                found.append(ListOps(tokens, value, depth))
    return _padded(found, longest)


def _padded(items: list[ListOps], length: int) -> Labelled:
    inputs_NT = np.full((len(items), length), listops_ids.PAD, np.int32)
    for row, item in enumerate(items):
        inputs_NT[row, : len(item.tokens)] = item.tokens
    last = [len(item.tokens) - 1 for item in items]
    columns = (last, [item.value for item in items], [item.depth for item in items])
    return Labelled(inputs_NT, *(np.array(x, np.int32) for x in columns))


def _images(images_NHW, labels_N, difficulty_N) -> Labelled:
    inputs_NT = images_NHW.reshape(len(images_NHW), -1).astype(np.int32)
    last_N = np.full(len(inputs_NT), inputs_NT.shape[1] - 1)
    return Labelled(inputs_NT, *(np.asarray(x).astype(np.int32) for x in (last_N, labels_N, difficulty_N)))


@functools.lru_cache(maxsize=2)
def read_reviews(longest: int) -> Labelled:
    """Return all film reviews, cut to so many bytes; difficulty is the quarter of their whole lengths."""
    path = data_folder("text_classification", "nltk", "movie_reviews.zip")
    texts: list[tuple[bytes, int]] = []
    with zipfile.ZipFile(path) as packed:
        for label, folder in enumerate(("neg", "pos")):
            found = (name for name in packed.namelist() if f"/{folder}/" in name)
            names = sorted(name for name in found if name.endswith(".txt"))
            texts += [(packed.read(name), label) for name in names]
    if not texts:
        raise UserError(f"{path} holds no reviews; it must have folders neg and pos of .txt files")
    inputs_NT = np.full((len(texts), longest), _BYTES - 1, np.int32)
    for row, (text, _) in enumerate(texts):
        cut = np.frombuffer(text[:longest], np.uint8)
        inputs_NT[row, : len(cut)] = np.where(cut < 128, cut, 0)
    lengths = np.array([len(text) for text, _ in texts])
    quarter_N = np.searchsorted(np.quantile(lengths, (0.25, 0.5, 0.75)), lengths)
    last_N = np.minimum(lengths, longest) - 1
    columns = (last_N, [label for _, label in texts], quarter_N)
    return Labelled(inputs_NT, *(np.asarray(x, np.int32) for x in columns))


def read_digits(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return MNIST's test digits, uint8 [10000, 28, 28], and their labels.

    Raises:
      UserError: files of another format, size or number.
    """
    images = _read_idx(Path(folder, "t10k-images-idx3-ubyte.gz"), 3)
    labels = _read_idx(Path(folder, "t10k-labels-idx1-ubyte.gz"), 1)
    if images.shape[1:] != (_SIDE, _SIDE):
        raise UserError(
            f"the images in {folder} have {images.shape[1]} x {images.shape[2]} pixels, and digits have "
            f"{_SIDE} x {_SIDE}; give MNIST's own files"
        )
    if len(images) != len(labels):
        raise UserError(
            f"{folder} holds {len(images)} images and {len(labels)} labels; give files of one set"
        )
    return images, labels


def _read_idx(path: Path, rank: int) -> np.ndarray:
    try:
        content = gzip.decompress(path.read_bytes())
        magic, *shape = struct.unpack(f">{rank + 1}I", content[: 4 * (rank + 1)])
        if magic == 0x800 + rank:
            return np.frombuffer(content, np.uint8, offset=4 * (rank + 1)).reshape(shape)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the folder of MNIST's files") from None
    except (OSError, EOFError, ValueError, struct.error):
        pass
    raise UserError(f"{path} is no whole idx file of bytes with {rank} axes; give MNIST's own, unchanged")
