"""The command `jaxllm`."""

import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version

import jaxllm
from jaxllm.cli.parse import run
from jaxllm.errors import unknown
from jaxllm.quiet_start import quiet_start

_COMMANDS = {
    "train": "train a model from scratch, or resume a run",
    "plan": "find the fastest way to train on a machine that is not here",
    "generate": "continue a prompt with a trained model",
    "chat": "talk with a chat model",
    "train_labels": "train an encoder to label texts, or their words",
    "label": "label texts with such an encoder",
    "train_punctuator": "train an encoder to put marks into text",
    "punctuate": "put marks into text that has none",
    "demo": "open a page that suggests what comes next while somebody types",
    "evaluate": "score a model on text, or on tasks of lm-evaluation-harness",
    "lm_eval": "lm-evaluation-harness's own command line, with `--model jaxllm`",
    "convert": "write a model as a Hugging Face folder",
}


def main() -> None:
    """Run the command line; modules of the folder it is called in are found (`--optim.name a.b:chain`)."""
    sys.path.append(os.getcwd())
    run(_main)


def _main(argv: Sequence[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: jaxllm COMMAND [options]\n")
        for name, what in _COMMANDS.items():
            print(f"  {name:17} {what}")
        print("\n`jaxllm COMMAND --help` shows a command's options and their defaults; `jaxllm --version`.")
        return
    if argv[0] in ("-V", "--version", "version"):
        print(f"jaxllm {jaxllm.__version__}, jax {version('jax')}, Python {platform.python_version()}")
        return
    if argv[0] not in _COMMANDS:
        raise unknown("command", argv[0], _COMMANDS)
    quiet_start()
    # A command's module is imported when it is used: `jaxllm --help` should not wait for jax.
    module = __import__(f"jaxllm.cli.{argv[0]}", fromlist=["main"])
    module.main(argv[1:])


if __name__ == "__main__":
    sys.exit(main())
