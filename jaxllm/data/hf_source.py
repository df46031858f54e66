"""Rows of the Hugging Face hub's datasets, or of a local folder, through the `datasets` library."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxllm.data.rows import Row
from jaxllm.errors import UserError, brief, unknown

_SPLITS = ("train", "validation", "test")  # what the hub calls them; "OWNER/test" is no likely name


@dataclasses.dataclass(frozen=True)
class RowDataset:
    """A dataset's rows.

    Attributes:
      fingerprint: a hash of its files and of how they are read.
      rows: starts a new pass.
    """

    fingerprint: str
    rows: Callable[[], Iterator[Row]]


def open_dataset(spec: str, column: str | None) -> RowDataset:
    """Open a dataset; one that is not on this machine yet is downloaded into the library's own cache.

    Args:
      spec: "hf:NAME[:CONFIG][/SPLIT]", where NAME is the hub's "OWNER/NAME", or a folder (of jsonl, csv or
        parquet files, or one that the library's `save_to_disk` wrote); the split is "train" if not given.
      column: how rows are read: a part of the fingerprint.

    Raises:
      UserError: the library is not installed, there is no such dataset, configuration or split, or it is
        empty.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"'{spec}' needs the datasets library: pip install 'jaxllm[hf]'") from error
    name, config, split = _parse(spec)
    found = _load(datasets, spec, name, config, split)
    if not len(found):
        raise UserError(f"the data '{spec}' is empty: the split '{split}' has no rows; name another")

    def rows() -> Iterator[Row]:
        for number, values in enumerate(found, 1):
            yield Row(values, f"row {number} of '{spec}'", f"'{spec}'")

    return RowDataset(_hash(found, column), rows)


def _parse(spec: str) -> tuple[str, str | None, str]:
    """Return (name, configuration, split).

    Examples:
      >>> _parse("hf:owner/name"), _parse("hf:owner/name/test"), _parse("hf:name:english/validation")
      (('owner/name', None, 'train'), ('owner/name', None, 'test'), ('name', 'english', 'validation'))
    """
    name = os.path.expanduser(spec.removeprefix("hf:"))
    if os.path.isdir(name):
        return name, None, "train"
    name, colon, config = name.partition(":")
    if colon:
        config, _, split = config.partition("/")
        return name, config or None, split or "train"
    above, _, last = name.rpartition("/")
    if above and (os.path.isdir(above) or "/" in above or last in _SPLITS):
        return above, None, last
    return name, None, "train"


def _load(datasets, spec: str, name: str, config: str | None, split: str):
    saved = [file for file in ("dataset_dict.json", "state.json") if (Path(name) / file).is_file()]
    try:
        datasets.disable_progress_bars()
        if saved:
            found = datasets.load_from_disk(name)
            whole = found if isinstance(found, dict) else {"train": found}
        else:
            whole = None
            found = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # anything from a refused connection to a damaged file
        raise UserError(
            f"cannot open '{spec}': the datasets library says {_reason(error)}; expected "
            "hf:NAME[:CONFIG][/SPLIT], the hub's name of a dataset or a folder"
        ) from error
    if whole is None:
        return found
    if split not in whole:
        raise unknown(f"split of '{name}'", split, whole)
    return whole[split]


def _reason(error: Exception) -> str:
    """Return the first line of what went wrong."""
    return brief(str(error).partition("\n")[0] or type(error).__name__, 200)


def _hash(found, column: str | None) -> str:
    digest = hashlib.sha256(f"{found.split} {column or ''} {len(found)}".encode())
    for file in found.cache_files:
        with open(file["filename"], "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
