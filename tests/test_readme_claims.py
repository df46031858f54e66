"""Each command, block of Python, flag, file and name in README and OPTIONS exists, and is called as shown."""

import ast
import importlib
import importlib.util
import inspect
import json
import re
import shlex
import sys
import tomllib
import types
from dataclasses import fields
from pathlib import Path

import numpy as np
import optax
import pytest

from experiments import pretrain
from experiments.benchmarks.published_steps import PUBLISHED
from jaxllm import models
from jaxllm.cli import _main as jaxllm
from jaxllm.cli.parse import parse
from jaxllm.cli.train import parse_config
from jaxllm.data import load_tokenizer
from jaxllm.pretrained import Pretrained
from jaxllm.text import TrainConfig, train
from jaxllm.text.presets import TRAIN_PRESETS
from jaxllm.train import to_dict
from jaxllm.train.checkpoint import Checkpoints
from tests.models.random_params import random_params

ROOT = Path(__file__).parents[1]
README, OPTIONS = ((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "OPTIONS.md"))


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def rows(header, page=README):
    """Return the rows of the table with this header, each a list of cells."""
    table = page.split(header, 1)[1].split("\n\n", 1)[0]
    return [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]


def codes(text):
    return re.findall(r"`([^`]+)`", text)


NAMED = ("train", "train_labels", "label", "train_punctuator", "punctuate", "generate", "chat", "evaluate",
         "convert", "plan", "demo")  # fmt: skip


def commands():
    """Yield the words after `jaxllm` of every command line."""
    for line in "\n".join(blocks("sh")).replace("\\\n", " ").splitlines():
        found = re.search(rf"jaxllm ((?:{'|'.join(NAMED)}) [^#]*)", line)
        if found:
            quoted = "--command" in line  # all of it, for another shell
            yield shlex.split(found.group(1).rstrip().removesuffix('"') if quoted else found.group(1))


COMMANDS = list(commands())


class Reached(Exception):
    """The command line was understood: what follows would be the work itself."""


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_line_is_understood(words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "held_out.txt").write_text("A text.")
    (tmp_path / "plan.json").write_text(json.dumps(to_dict(TrainConfig())))

    def reached(*arguments, **options):
        raise Reached

    for place in ("train.train", "plan.plan", "generate.load_model_and_tokenizer", "convert.load_model",
                  "chat.load_model_and_tokenizer", "convert.export_adapter",
                  "evaluate.load_model_and_tokenizer", "evaluate._tasks", "train_labels.read_labelled",
                  "label.Labeller.load", "train_punctuator.read_documents", "punctuate._read",
                  "demo.open_port"):  # fmt: skip
        monkeypatch.setattr(f"jaxllm.cli.{place}", reached)
    monkeypatch.setattr("jaxllm.compilation_cache.enable", lambda: None)
    monkeypatch.setattr("jaxllm.parallel.initialize", lambda: None)
    with pytest.raises(SystemExit if "--help" in words else Reached) as ended:
        jaxllm(words)
    assert not isinstance(ended.value, SystemExit) or not ended.value.code


def test_the_commands_are_found():
    assert len(COMMANDS) >= 10
    named = {words[0] for words in COMMANDS}
    assert named == set(NAMED)


def test_every_flag_of_the_table_is_one(monkeypatch):
    """A flag without a value gets one; a value without a flag belongs to the flag before it."""
    chain = types.ModuleType("my.module")
    chain.my_chain = lambda learning_rate: optax.sgd(learning_rate)
    monkeypatch.setitem(sys.modules, "my", types.ModuleType("my"))
    monkeypatch.setitem(sys.modules, "my.module", chain)
    booleans = {f"--{f.name.replace('_', '-')}" for f in fields(TrainConfig) if f.type in (bool, "bool")}
    seen = set()
    for row in rows("| to change | flag |", OPTIONS):
        flag = None
        for code in codes(row[1]):
            if code.startswith("jaxllm."):
                module, _, name = code.rpartition(".")
                assert hasattr(importlib.import_module(module), name)
                continue
            words = shlex.split(code) if code.startswith("--") else [flag, code]
            if len(words) == 1 and words[0] not in booleans:
                words.append("1")
            words = ["gpt2-nano" if word == "NAME" else word for word in words]
            more = ["--vocab-groups", "frequency"] if "--model.group-head" in words else []
            more += ["--model.vocab-size", "64"] if more else []
            more += ["--engine", "tiles"] if row[0] == "the engine" and "--engine" not in words else []
            parse_config([*words, *more], prog="", description="")
            flag = words[0]
            seen.add(flag)
    assert len(seen) >= 20


def test_the_presets_are_those_that_there_are():
    paragraph = OPTIONS.split("Presets: ", 1)[1].split("\n\n", 1)[0]
    named = []
    for code in codes(paragraph):
        named.append(named[-1].rsplit("-", 1)[0] + code if code.startswith("-") else code)
    assert set(named) == set(TRAIN_PRESETS)


def test_every_experiment_is_a_module_and_those_outside_benchmarks_have_a_debug_preset():
    found = set()
    for figure, command in rows("| figure | command |"):
        package = None
        for code in codes(command):
            name = re.search(r"python -m (experiments[\w.]*)", code)
            if name:
                module, package = name.group(1), name.group(1).rpartition(".")[0]
            elif code.startswith("."):
                module = package + code
            else:
                continue
            spec = importlib.util.find_spec(module)
            assert spec is not None, (figure, module)
            files = [spec.origin]
            if spec.submodule_search_locations:
                files.append(importlib.util.find_spec(f"{module}.__main__").origin)
            source = "".join(Path(file).read_text(encoding="utf-8") for file in files)
            assert "run_experiment(main" in source, module
            assert module.startswith("experiments.benchmarks.") or '"debug"' in source, module
            found.add(module)
    assert len(found) >= 25


def test_every_file_and_folder_that_is_named_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README + OPTIONS):
        local = re.sub(r"^https://colab\.research\.google\.com/github/jaxllm/jaxllm/blob/main/", "", target)
        assert local.startswith("https://") or (ROOT / local).exists(), target
    titles = {re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-")
              for line in README.splitlines() if line.startswith("#")}  # fmt: skip
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= titles
    tree = README.split("## The house", 1)[1]
    named = set(re.findall(r"^  (\w+)/ ", tree, re.MULTILINE))
    folders = {path.parent.name for path in (ROOT / "jaxllm").glob("*/__init__.py")}
    assert named == folders
    for path in re.findall(r"tests/[\w/]+\.py", README):
        assert (ROOT / path).exists(), path


def test_every_extra_is_declared():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = ",".join(re.findall(r"['`](?:jaxllm|\.)\[([^\]]+)\]['`]", README + OPTIONS)).split(",")
    assert len(named) > 3 and set(named) <= set(declared)


def test_the_kernels_that_are_named_have_what_is_said_of_them():
    kernels = ROOT / "kernels" / "jaxllm_kernels"
    for name in ("attention", "linear_cross_entropy", "adamw_update", "hadamard_rotate", "selective_scan"):
        assert (kernels / name / "reference.py").exists() and (kernels / name / "xla.py").exists()
    for name in ("attention", "linear_cross_entropy", "hadamard_rotate"):
        assert (kernels / name / "pallas_tpu.py").exists() and (kernels / name / "pallas_gpu.py").exists()
    operations = {path.parent.name for path in kernels.glob("*/api.py")}
    assert operations == {"attention", "linear_cross_entropy", "grouped_cross_entropy", "adamw_update",
                          "hadamard_rotate", "selective_scan"}  # fmt: skip


def python_block(beginning):
    [code] = [code for code in blocks("python") if code.startswith(beginning)]
    return code


def test_the_model_from_python_runs_as_shown():
    code = python_block("import jax\nfrom jaxllm import models")
    small = code.replace('"gpt2", num_layers=6', '"gpt2-nano", num_layers=2, vocab_size=4096')
    small = small.replace("(2, 128)", "(2, 16)")
    assert small.count("nano") == small.count("(2, 16)") == 1
    shown = {}
    exec(small, shown)
    assert shown["logits"].shape == (2, 16, 4096) and shown["logits"].dtype == "float32"
    assert shown["axes"]["layers"]["mlp"]["in"] == ("layers", "embed", "mlp")
    assert set(shown["seen"]) == {"resid_post", "attn_probs"}
    assert [len(row) for row in shown["drawn"].tokens] == [5, 5]
    assert [len(row) for row in shown["many"].tokens] == [5] * 32 and shown["hidden"].shape[0] == 2
    assert abs(shown["loss"] - shown["sums"]["loss_sum"] / 32) < 1e-6


def test_a_pretrained_model_and_a_run_are_used_as_shown(monkeypatch, capsys):
    """A tiny model stands for both; every call and argument is the README's."""
    config = models.get_preset("gpt2-nano", vocab_size=257)
    tiny = Pretrained(config, random_params(config), load_tokenizer("bytes"))
    asked = []
    for place in ("jaxllm.pretrained.from_pretrained", "jaxllm.text.load_run"):
        monkeypatch.setattr(place, lambda source: asked.append(source) or tiny)
    shown = {}
    exec(python_block("from jaxllm.generate"), shown)
    assert asked == ["HuggingFaceTB/SmolLM2-135M", "runs/gpt2-mini"]
    printed = re.fullmatch(r"(.*)\n([\d.]+)\n(\[.*\])\n", capsys.readouterr().out, re.DOTALL)
    one, bits, several = printed.groups()
    assert 5 < float(bits) < 12 and len(ast.literal_eval(several)) == 2 and not one.startswith("[")


def test_the_picture_is_small_and_its_command_is_one_of_the_repository(monkeypatch):
    [picture] = re.findall(r"!\[[^\]]+\]\(([^)]+\.png)\)", README)
    assert (ROOT / picture).stat().st_size < 60_000
    assert README.index(picture) < README.index("<!-- main job -->") < README.index("## ")
    [options] = re.findall(r"the picture: python -m experiments\.pretrain ([^&]*)", README)
    config, _ = parse(
        pretrain.PretrainConfig, options.split(), prog="", description="", presets=pretrain.PRESETS,
        default_preset="small",
    )  # fmt: skip
    assert config.steps == 200 and pretrain.PRESETS["small"]().steps == 1200  # as the words beside it say
    assert f"cp {config.out}/curves.png {picture}" in README


def test_the_first_screen_says_how_to_activate_the_environment_and_how_long_tests_take():
    first = README.split("\n## ", 1)[0]
    assert ". .venv/bin/activate" in first and "5 to 12 minutes" in first and "colab-badge.svg" in first
    assert README.index("## The house") > README.index("## What runs where")  # the layout is last


def test_training_from_python_is_called_as_shown(monkeypatch):
    called = {}
    take = lambda config, **options: called.update(config=config, **options)
    monkeypatch.setattr("jaxllm.text.train", take)
    exec(python_block("from jaxllm.text import TrainConfig"), {})
    assert called["config"].data == "my.txt" and called["config"].steps == 2000
    assert isinstance(called["optimizer"], optax.GradientTransformation)


def test_numbers_go_to_wandb_and_trackio_as_shown(monkeypatch):
    """Both are called so: init(project=), log(numbers, step=)."""
    logged, said = [], {}
    wandb = types.ModuleType("wandb")
    wandb.init = lambda project: said.update(project=project)
    wandb.log = lambda numbers, step: logged.append((step, numbers))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr("jaxllm.text.train", lambda config, on_metrics: on_metrics(7, {"loss": 2.5}))
    exec(python_block("import wandb"), {})
    assert said == {"project": "mine"} and logged == [(7, {"loss": 2.5})]
    assert "on_metrics" in inspect.signature(train).parameters


def test_a_task_is_trained_as_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = {}
    exec(python_block("import jax, jax.numpy as jnp, numpy"), shown)
    assert shown["trained"].evaluation["loss"] < 1e-3
    np.testing.assert_allclose(shown["trained"].params["w"], 1, atol=1e-2)
    assert Checkpoints("runs/regression/checkpoints").steps() == [1, 10, 100, 200]


def test_a_copy_is_fitted_to_each_document_as_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = models.get_preset("gpt2-nano", vocab_size=257, num_layers=1, embed_dim=16, num_heads=2,
                               context_length=256)  # fmt: skip
    model = config, random_params(config), load_tokenizer("bytes")
    library = [f"{n} {'abc' * (n % 5 + 1)} {'xyz' * (n % 3)}" for n in range(24)]
    shown = dict(model=model, library=library, documents=["abcabcabc", "xyz abc"])
    shown["from_pretrained"] = lambda source: model
    exec(python_block("from jaxllm.adapt"), shown)
    assert all(some[2].bits_per_byte < some[0].bits_per_byte for some in shown["scores"])


def test_every_block_of_python_is_run_by_a_test():
    arrays = "import jax, jax.numpy as jnp"
    beginnings = ("from jaxllm.generate", "import wandb", "from jaxllm.adapt", "import jax\nfrom",
                  "from jaxllm.text", f"{arrays}, numpy", f"{arrays}, optax")  # fmt: skip
    assert [python_block(one) for one in beginnings] == blocks("python")  # the last in test_readme.py


def test_optimizers_and_links_that_are_named_exist():
    import jaxllm.optim

    for row in rows("| link | |"):
        for name in re.findall(r"`(\w+)\(", row[0]):
            assert hasattr(jaxllm.optim, name), name
    for name in ("lion", "adafactor", "sgd"):
        assert parse_config(["--optim.name", name], prog="", description="").optim.name == name


def test_the_published_figures_are_as_many_as_is_said():
    assert f"forecasts against {len(PUBLISHED)} published step times" in README
