"""jaxllm lm_eval"""

import re
import sys
from collections.abc import Sequence

from jaxllm import compilation_cache
from jaxllm.cli.parse import take
from jaxllm.errors import UserError, bare, unknown
from jaxllm.text.load import check_source, load_model_and_tokenizer


def main(argv: Sequence[str]) -> None:
    """Run the command line of EleutherAI's lm-evaluation-harness, to which `--model jaxllm` is known.

    jaxllm lm_eval --model jaxllm --model_args pretrained=runs/my-run --tasks arc_easy
    """
    register()
    source = _source(argv)
    if source is not None:
        check_source(source)  # before the tasks are read, which takes longer
    from lm_eval.__main__ import cli_evaluate

    compilation_cache.enable()
    sys.argv = ["jaxllm lm_eval", *argv]
    try:
        cli_evaluate()
    except ValueError as error:
        said, colon, names = str(error).partition("Tasks not found: ")
        if said or not colon:
            raise
        raise UserError(f"unknown tasks '{bare(names, 80)}'; jaxllm lm_eval ls tasks prints all") from error


def _source(argv: Sequence[str]) -> str | None:
    """Return which model of ours a command line of lm_eval's names; None: none, or in a file of its own."""
    if "jaxllm" not in (take(argv, "--model")[1], take(argv, "-M")[1]):
        return None
    found = [re.search(r"(?:^|[=,])pretrained=([^,]+)", word) for word in argv]
    return next((match[1] for match in found if match), None)


def register() -> None:
    """Make `jaxllm` the name of a model of lm_eval's, as in `lm_eval.simple_evaluate("jaxllm", ...)`.

    Its `model_args` are pretrained (what `jaxllm generate` takes), checkpoint, dtype (of a pretrained model;
    a run keeps its own) and max_gen_toks.

    Raises:
      UserError: lm_eval is not installed.
    """
    check_installed()
    from lm_eval.api.registry import register_model

    from jaxllm.score.harness import HarnessModel

    class NamedModel(HarnessModel):
        # lm_eval passes its own batch_size, max_batch_size and device to every model: ours batches by tokens.
        def __init__(self, *, batch_size=None, max_batch_size=None, device=None, **given):
            known = {"pretrained": None, "checkpoint": "latest", "dtype": "float32", "max_gen_toks": 256}
            for name in given:
                if name not in known:
                    raise unknown("model argument", name, known)
            args = known | given
            if args["pretrained"] is None:
                raise UserError(
                    "--model jaxllm needs --model_args pretrained=SOURCE: a training run, a Hugging Face "
                    "folder, a .safetensors or .gguf file, or a hub id"
                )
            found = load_model_and_tokenizer(str(args["pretrained"]), args["checkpoint"], args["dtype"])
            super().__init__(*found, max_gen_toks=args["max_gen_toks"])

    register_model("jaxllm")(NamedModel)


def check_installed() -> None:
    """Raise UserError if lm_eval cannot be imported."""
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"this needs EleutherAI's lm-evaluation-harness ({error}); pip install 'jaxllm[harness]'"
        ) from error
