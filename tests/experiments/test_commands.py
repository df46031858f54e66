"""Every experiment is a command that tells its own name, its docstring and its presets."""

import contextlib
import importlib.util
import io
import runpy
import sys
from pathlib import Path

import jax
import pytest

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
def test_help_names_the_command_and_says_what_it_asks(name, monkeypatch):
    # pytest's importer takes benchmarks/test_time.py for a test, and runpy cannot run what it imports.
    finders = [finder for finder in sys.meta_path if "_pytest" not in type(finder).__module__]
    monkeypatch.setattr(sys, "meta_path", finders)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.setattr(jax.config, "update", lambda *_: None)  # devices cannot be added to running tests
    with contextlib.redirect_stdout(io.StringIO()) as shown, pytest.raises(SystemExit) as ended:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    assert not ended.value.code
    words = " ".join(shown.getvalue().split())
    assert words.startswith(f"usage: python -m {name} [")
    first = Path(importlib.util.find_spec(name).origin).read_text(encoding="utf-8").split("\n")[0]
    assert " ".join(first.strip('"').split()) in words
