"""What people type: other programs' options, names with one letter wrong, --help, --version."""

import json
import re
import subprocess
import sys

import pytest

import jaxllm
from jaxllm.cli import _main, parse
from jaxllm.cli.hints import TRAIN_HINTS, USE_HINTS
from jaxllm.cli.train import parse_config
from jaxllm.errors import UserError
from jaxllm.models.config import ACTIVATIONS, REMAT
from jaxllm.subnetwork.schedule import SCHEDULES
from jaxllm.text import TrainConfig
from jaxllm.text.config_file import read_config
from jaxllm.text.precision import PRECISIONS
from jaxllm.train import to_dict
from jaxllm.vocabulary.vocab_order import VOCAB_ORDERS


def refused(*words):
    with pytest.raises(UserError) as error:
        parse_config(list(words), prog="jaxllm train", description="")
    return str(error.value)


@pytest.mark.parametrize("typed, meant", [
    ("--lr", "--optim.learning-rate"),
    ("--learning_rate=1e-3", "--optim.learning-rate"),
    ("--dropout", "--model.dropout"),
    ("--epochs", "--steps"),
    ("--bs", "--batch-size"),
    ("--gpu", "CUDA_VISIBLE_DEVICES"),
    ("--wandb", "on_metrics"),
    ("--n_layer", "--model.num-layers"),
])  # fmt: skip
def test_an_option_of_other_programs_is_told_in_one_sentence_what_it_is_here(typed, meant):
    sentence = refused(typed, "1")
    assert sentence.startswith(f"unknown option '{typed.partition('=')[0]}'; ") and meant in sentence


def test_hints_name_options_that_there_are_and_none_hides_one():
    """A hint for an option that exists would never be read; one that names another would mislead."""
    flags = set(parse._flags(TrainConfig()))
    for name, hint in TRAIN_HINTS.items():
        assert f"--{name}" not in flags, name
        named = {word for word in re.findall(r"--[a-z][a-z0-9.-]*[a-z0-9]", hint)} - {
            "--preset",
            "--checkpoint",
        }
        assert named <= flags | {"--no-progress"}, (name, named - flags)


def test_a_hint_of_an_option_that_this_command_has_not_is_left_out():
    with pytest.raises(UserError) as error:
        _main(["evaluate", "run", "--data", "a.txt", "--max-tokens", "5"])
    assert "max-tokens" in USE_HINTS and "--max-new-tokens" not in str(error.value)


def test_a_name_with_a_letter_wrong_is_told_the_closest():
    assert refused("--stpes", "5") == "unknown option '--stpes'; did you mean '--steps'?"
    assert refused("--engine", "tile") == "unknown engine 'tile'; did you mean 'tiles'? Known: jit, tiles"
    assert "did you mean 'mixed_o1'" in refused("--precision", "mixed_01")


def test_help_lists_the_values(capsys):
    with pytest.raises(SystemExit):
        parse_config(["--help"], prog="jaxllm train", description="")
    shown = re.sub(r"[\s│|]+", "", capsys.readouterr().out)  # as wide as the terminal, broken anywhere
    for names in (PRECISIONS, ACTIVATIONS, REMAT, SCHEDULES, VOCAB_ORDERS):
        for name in names:
            assert name in shown, name


def test_the_version_is_told_with_that_of_jax(capsys):
    _main(["--version"])
    assert capsys.readouterr().out.startswith(f"jaxllm {jaxllm.__version__}, jax ")


def test_a_run_s_config_file_is_read_whole_or_in_part_in_json_and_yaml(tmp_path):
    """6e-4 is a number, although YAML 1.1 would read a text; what a preset derives follows what is set."""
    (tmp_path / "mine.yaml").write_text(
        "preset: gpt2-nano\nsteps: 7\noptim: {learning_rate: 6e-4, schedule: wsd}\nmodel: {embed_dim: 32}\n"
    )
    config = parse_config(["--config", str(tmp_path / "mine.yaml"), "--seed", "3"], prog="x", description="")
    assert (config.steps, config.seed, config.optim.learning_rate, config.optim.schedule) == (
        7,
        3,
        6e-4,
        "wsd",
    )
    assert (config.model.embed_dim, config.model.mlp_dim, config.model.num_layers) == (32, 128, 2)
    assert config.out == "runs/gpt2-nano"
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    assert read_config(tmp_path) == read_config(tmp_path / "config.json") == config


@pytest.mark.parametrize("text, sentence", [
    ("steps: [", "is not YAML"),
    ("- 1", r"holds \[1\] where names and values"),
    ("preset: [gpt2]", r"unknown preset in .*mine.yaml: '\['gpt2'\]'; did you mean 'gpt2'"),
    ("preset: {a: 1}", "unknown preset in .*mine.yaml: '{'a': 1}'"),
    ("preset: gtp2", "unknown preset in .*mine.yaml: 'gtp2'; did you mean 'gpt2'"),
    ("stps: 3", "unknown field in .*mine.yaml: 'stps'; did you mean 'steps'"),
    ("steps: 0.5", "mine.yaml: steps is 0.5; it must be a whole number"),
])  # fmt: skip
def test_a_config_file_with_a_mistake_is_refused_in_one_sentence(text, sentence, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_config(tmp_path / "mine.yaml")


def test_held_out_text_and_a_fraction_to_hold_out_are_one_too_many():
    with pytest.raises(UserError, match="give the text or the fraction"):
        TrainConfig(valid_data="held.txt", valid_fraction=0.2)


@pytest.mark.slow
def test_python_m_jaxllm_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "jaxllm", "--help"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("usage: jaxllm COMMAND")
