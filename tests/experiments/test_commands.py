"""Every experiment is a command that tells its own name, its docstring and its presets."""

import contextlib
import importlib.util
import io
import re
import runpy
import shlex
import sys
from pathlib import Path

import jax
import pytest

from jaxllm.cli import experiment
from jaxllm.cli.parse import parse

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
RUN = [
    ".".join(path.relative_to(EXPERIMENTS.parent).with_suffix("").parts).removesuffix(".__main__")
    for path in sorted(EXPERIMENTS.rglob("*.py"))
    if "    run_experiment(main" in path.read_text(encoding="utf-8")
]


def test_there_are_commands_of_files_of_folders_and_of_benchmarks():
    assert {"experiments.pretrain", "experiments.mad", "experiments.benchmarks.training"} <= set(RUN)


@pytest.mark.slow  # imports all of them
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("name", RUN)
def test_help_names_the_command_and_the_docstring_s_own_lines_are_understood(name, monkeypatch):
    # pytest's importer takes benchmarks/test_time.py for a test, and runpy cannot run what it imports.
    finders = [finder for finder in sys.meta_path if "_pytest" not in type(finder).__module__]
    monkeypatch.setattr(sys, "meta_path", finders)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.setattr(jax.config, "update", lambda *_: None)  # devices cannot be added to running tests
    run_experiment, understood = experiment.run_experiment, []

    def parse_first(main, config_class, presets=None, default_preset="small"):
        doc = sys.modules[main.__module__].__doc__.replace("\\\n", "")
        line = rf"python -m {re.escape(name)}(?![.\w])(.*?)(?: #|;|`|$)"
        for words in re.findall(line, doc, re.MULTILINE):
            options = dict(presets=presets, default_preset=default_preset if presets else None)
            understood.append(parse(config_class, shlex.split(words), prog="", description="", **options))
        run_experiment(main, config_class, presets, default_preset)

    monkeypatch.setattr(experiment, "run_experiment", parse_first)
    with contextlib.redirect_stdout(io.StringIO()) as shown, pytest.raises(SystemExit) as ended:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    assert not ended.value.code and understood
    words = " ".join(shown.getvalue().split())
    assert words.startswith(f"usage: python -m {name} [")
    first = Path(importlib.util.find_spec(name).origin).read_text(encoding="utf-8").split("\n")[0]
    assert " ".join(first.strip('"').split()) in words
