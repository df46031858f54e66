"""The command line of an experiment: `python -m experiments.NAME`."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxllm.cli.parse import parse, run


def run_experiment(
    main: Callable,
    config_class: type,
    presets: Mapping[str, Callable[[], Any]] | None = None,
    default_preset: str = "small",
) -> None:
    """Call `main(config, preset)` with what the command line says; without presets, `main(config)`.

    The module that defines `main` gives the name of the command and, in its docstring, the text of --help.

    Args:
      main: the experiment.
      config_class: frozen dataclass of its values.
      presets: name to a function that makes the config to start from.
      default_preset: the one that is taken where --preset is not given.
    """
    module = sys.modules[main.__module__]

    def command(argv):
        config, preset = parse(
            config_class, argv, prog=f"python -m {module.__spec__.name}", description=module.__doc__,
            presets=presets, default_preset=default_preset if presets else None,
        )  # fmt: skip
        if preset == "debug":  # compiles for longer than it runs
            jax.config.update("jax_disable_most_optimizations", True)
        main(config, preset) if presets else main(config)

    run(command)
