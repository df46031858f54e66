"""jaxllm lm_eval"""

import sys
from collections.abc import Sequence

from jaxllm import compilation_cache
from jaxllm.errors import UserError, unknown
from jaxllm.text.load import load_model_and_tokenizer


def main(argv: Sequence[str]) -> None:
    """Run the command line of EleutherAI's lm-evaluation-harness, to which `--model jaxllm` is known.

    jaxllm lm_eval --model jaxllm --model_args pretrained=runs/my-run --tasks arc_easy
    """
    register()
    from lm_eval.__main__ import cli_evaluate

    compilation_cache.enable()
    sys.argv = ["jaxllm lm_eval", *argv]
    cli_evaluate()


def register() -> None:
    """Make `jaxllm` the name of a model of lm_eval's, as in `lm_eval.simple_evaluate("jaxllm", ...)`.

    Its `model_args` are pretrained (what `jaxllm generate` takes), checkpoint, dtype and max_gen_toks.

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
