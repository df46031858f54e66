"""A command in odd surroundings: no home, a terminal that knows few letters, a reader that left."""

import importlib.machinery
import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import pytest

from jaxllm import compilation_cache
from jaxllm.atomic import write_file
from jaxllm.cli import main, parse
from jaxllm.cli.plan import _DESCRIPTION
from jaxllm.cli.train import parse_config
from jaxllm.errors import UserError
from jaxllm.optim import OptimConfig, make_optimizer
from jaxllm.user_cache import user_cache_folder


def test_a_terminal_that_knows_few_letters_gets_all_the_text(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    parse.run(lambda argv: print(argv[0]), ["naïve café \N{SNOWMAN}"])
    assert written.getvalue() == b"na\\xefve caf\\xe9 \\u2603\n"


def test_a_reader_that_left_ends_the_command_without_a_word(tmp_path):
    program = "from jaxllm.cli.parse import run\nrun(lambda argv: [print('x' * 1000) for _ in range(1000)])"
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as out:
        done = subprocess.run([sys.executable, "-c", program], stdout=out, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (141, b"")


def test_what_the_system_says_of_a_file_is_one_sentence(capsys):
    def long_name(argv):
        open("A" * 100_000)

    with pytest.raises(SystemExit) as stop:
        parse.run(long_name, [])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: File name too long: 'AAAA") and len(error) < 300


def test_without_a_home_the_cache_asks_for_a_variable_that_exists(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user that the system has not
    with pytest.raises(UserError, match="no home folder .* XDG_CACHE_HOME"):
        user_cache_folder()


def test_a_cache_that_cannot_be_written_says_what_to_set(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot write in the folder .*XDG_CACHE_HOME"):
        write_file(user_cache_folder() / "tokens" / "x", b"")
    with pytest.raises(UserError) as error:
        write_file(Path(__file__) / "x", b"")
    assert "XDG_CACHE_HOME" not in str(error.value) and "choose a folder" in str(error.value)


def test_compiled_programs_are_not_worth_a_failure(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    kept = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            compilation_cache.enable()
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", kept)
    assert len(caught) == 1 and "XDG_CACHE_HOME" in str(caught[0].message)


def test_paths_in_quotes_reach_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "plan.json").write_text('{"steps": 7}')
    argv = ["--config", "~/plan.json", "--out", "~/run", "--data", "~/a.txt"]
    config = parse_config(argv, prog="jaxllm train", description=_DESCRIPTION)
    assert (config.steps, config.out, config.data) == (7, f"{tmp_path}/run", f"{tmp_path}/a.txt")


def test_without_docstrings_a_command_line_is_still_read():
    from jaxllm.text import TrainConfig

    presets = {"debug": TrainConfig}
    config, preset = parse.parse(TrainConfig, ["--steps", "3"], prog="x", description=None, presets=presets,
                                 default_preset="debug")  # fmt: skip
    assert (config.steps, preset) == (3, "debug")


def test_a_module_of_the_folder_that_the_script_is_called_in_is_found(tmp_path, monkeypatch, capsys):
    """As under `python -m`; what is installed comes first."""
    for name in ("a_chain_of_mine", "optax"):
        (tmp_path / f"{name}.py").write_text("import optax\n\ndef chain_of(learning_rate):\n"
                                             "    return optax.sgd(learning_rate)\n")  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setattr(sys, "argv", ["jaxllm", "--version"])
    main()
    assert capsys.readouterr().out.startswith("jaxllm ")
    mine = OptimConfig(name="a_chain_of_mine:chain_of")
    assert callable(make_optimizer(mine, 10, {"w": ("embed",)}).update)
    found = importlib.machinery.PathFinder.find_spec("optax", sys.path)
    assert not found.origin.startswith(str(tmp_path))


@pytest.mark.slow
def test_commands_print_nothing_but_their_own_words_and_run_without_docstrings(tmp_path):
    """With the compilers of other machines installed, and at Python's highest optimisation."""
    command = [sys.executable, "-OO", "-m", "jaxllm.cli", "train", "--preset", "gpt2-nano", "--steps", "2",
               "--seq-len", "16", "--batch-size", "2", "--tokenizer", "bytes", "--no-progress",
               "--eval-batches", "1", "--final-eval-batches", "1", "--out", str(tmp_path)]  # fmt: skip
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    assert done.stderr == "starting from scratch\n", done.stderr
    assert "held-out loss" in done.stdout
