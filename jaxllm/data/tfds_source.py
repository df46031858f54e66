"""Text from TensorFlow Datasets, read as ArrayRecord files; TensorFlow is never imported."""

import dataclasses
import difflib
import hashlib
import os
import re
from collections.abc import Callable, Iterator

from jaxllm.errors import UserError, unknown

_VERSION = re.compile(r"[\d*]+\.[\d*]+\.[\d*]+")  # "squad:3.0.0" names a version, not a split.


@dataclasses.dataclass(frozen=True)
class TextDataset:
    """A prepared split: a hash of its files, and a pass over one of its text features."""

    fingerprint: str
    texts: Callable[[], Iterator[str]]


def open_dataset(spec: str, feature: str) -> TextDataset:
    """Find "tfds:NAME" or "tfds:NAME:SPLIT" (NAME as TFDS writes it; SPLIT is "train" if absent).

    A dataset that is not on this machine yet is downloaded and prepared as ArrayRecord files in
    TFDS's own folder (TFDS_DATA_DIR, or ~/tensorflow_datasets).

    Raises:
      UserError: if TFDS is not installed, or has no such dataset, split or feature, or cannot
        download it.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"the source '{spec}' needs TensorFlow Datasets (TensorFlow itself is not needed): "
            "pip install 'jaxllm[tfds]'"
        ) from error
    name, split = _parse(spec)
    builder = _builder(tfds, spec, name)
    if split not in builder.info.splits:
        raise unknown(f"split of 'tfds:{name}'", split, builder.info.splits)
    if feature not in builder.info.features:
        error = unknown("text column", feature, builder.info.features)
        raise UserError(f"{error} (in '{spec}'); name one with text_column")
    records = builder.as_data_source(split)

    def texts() -> Iterator[str]:
        for i in range(len(records)):
            value = records[i][feature]
            if not isinstance(value, bytes):
                raise UserError(
                    f"the feature '{feature}' of '{spec}' is {builder.info.features[feature]}; "
                    "expected text: name another with text_column"
                )
            yield value.decode(errors="replace")

    files = builder.info.splits[split].filepaths
    return TextDataset(_hash(builder.info.full_name, split, feature, files), texts)


def _parse(spec: str) -> tuple[str, str]:
    name, _, last = spec.removeprefix("tfds:").rpartition(":")
    if not name:
        return last, "train"
    return (f"{name}:{last}", "train") if _VERSION.fullmatch(last) else (name, last)


def _builder(tfds, spec: str, name: str):
    try:
        builder = tfds.builder(name, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        # The library's own message lists hundreds of names.
        known = tfds.list_builders(with_community_datasets=False)  # Those need TensorFlow.
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean 'tfds:{close[0]}'?" if close else "see tfds.list_builders()"
        raise UserError(f"TensorFlow Datasets has no dataset '{name}'; {hint}") from error
    except (ImportError, ValueError, AssertionError) as error:
        raise UserError(
            f"cannot open '{spec}' without TensorFlow ({_reason(error)}); expected "
            "tfds:NAME or tfds:NAME:SPLIT, with a dataset that TFDS reads without TensorFlow"
        ) from error
    if not builder.is_prepared():
        try:
            builder.download_and_prepare(file_format="array_record")
        except Exception as error:  # Anything from a refused connection to a missing parser.
            raise UserError(
                f"cannot download '{spec}' ({_reason(error)}); prepare it on a machine with a "
                f"network and copy it to '{os.fspath(builder.data_dir)}'"
            ) from error
    return builder


def _reason(error: Exception) -> str:
    """Return the first line of what went wrong: some of TFDS's messages run to a page."""
    return str(error).partition("\n")[0][:200] or type(error).__name__


def _hash(full_name: str, split: str, feature: str, files: list) -> str:
    digest = hashlib.sha256(f"{full_name} {split} {feature}".encode())
    for file in sorted(map(os.fspath, files)):
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
