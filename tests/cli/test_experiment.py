"""The command line that every experiment shares."""

import sys
import types
from dataclasses import dataclass

import jax
import pytest

from jaxllm.cli.experiment import run_experiment


@dataclass(frozen=True)
class Config:
    """Values."""

    steps: int = 3


@pytest.fixture
def optimizations():
    """Let a test say how much is optimised."""
    before = jax.config.read("jax_disable_most_optimizations")
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def command_line(monkeypatch):
    def give(*words):
        monkeypatch.setattr(sys, "argv", ["shown.py", *words])

    return give


def test_the_preset_is_where_the_flags_start_from(command_line, optimizations):
    seen = []
    presets = {"debug": lambda: Config(1), "small": lambda: Config(2)}
    for words, expected in [
        ([], (Config(2), "small")),
        (["--preset", "debug"], (Config(1), "debug")),
        (["--preset=debug", "--steps", "7"], (Config(7), "debug")),
    ]:
        command_line(*words)
        run_experiment(lambda *given: seen.append(given), Config, presets)
        assert seen.pop() == expected


def test_a_debug_run_is_compiled_fast(command_line, optimizations):
    seen = []
    for preset in ("small", "debug"):
        command_line("--preset", preset)
        note = lambda config, preset: seen.append(jax.config.read("jax_disable_most_optimizations"))
        run_experiment(note, Config, {"small": Config, "debug": Config})
    assert seen == [False, True]


def test_without_presets_main_gets_the_config_alone(command_line):
    seen = []
    command_line("--steps", "5")
    run_experiment(lambda *given: seen.append(given), Config)
    assert seen == [(Config(5),)]


@pytest.mark.parametrize("name", ["__main__", "experiments.shown"])
def test_help_is_of_the_module_that_defines_main(name, command_line, capsys, monkeypatch):
    module = types.ModuleType(name, "What it shows.")
    module.__spec__ = types.SimpleNamespace(name="experiments.shown")
    monkeypatch.setitem(sys.modules, name, module)
    main = lambda config: None
    main.__module__ = name
    command_line("--help")
    with pytest.raises(SystemExit) as exit:
        run_experiment(main, Config)
    shown = capsys.readouterr().out
    assert not exit.value.code
    assert "What it shows." in shown and "python -m experiments.shown" in shown


def test_a_wrong_flag_is_one_sentence_and_exit_code_2(command_line, capsys):
    command_line("--stpes", "5")
    with pytest.raises(SystemExit) as exit:
        run_experiment(lambda config: None, Config)
    assert exit.value.code == 2
    assert capsys.readouterr().err == "error: unknown option '--stpes'; did you mean '--steps'?\n"
