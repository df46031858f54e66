"""`jaxllm plan` and `jaxllm train --config`: the flags, the file between them, and a real compile."""

import dataclasses
import json

import pytest

from jaxllm import targets
from jaxllm.cli import _main as jaxllm_command
from jaxllm.cli import plan as command
from jaxllm.cli import train as train_command
from jaxllm.cli.parse import run
from jaxllm.errors import UserError
from jaxllm.parallel import MeshConfig
from jaxllm.targets.analytic import estimate
from jaxllm.targets.planner import plan
from jaxllm.text.config_file import read_config


@dataclasses.dataclass(frozen=True)
class FakeForecast:
    peak_bytes: int
    seconds: float
    fits: bool
    bound: str
    mfu: float


def fake_compile(config, target):
    e = estimate(config, target)
    return FakeForecast(e.peak_bytes, e.seconds, e.fits, e.bound, e.mfu)


@pytest.fixture
def searches(monkeypatch):
    """The arguments of every search; the compiler is left out."""
    seen = []

    def recorded(config, target, search, progress):
        seen.append((config, target, search))
        return plan(config, target, search, compile=fake_compile)

    monkeypatch.setattr(command, "plan", recorded)
    return seen


def test_the_command_prints_the_ranking_and_writes_a_config_that_train_reads(searches, tmp_path, capsys):
    out = tmp_path / "plan.json"
    command.main(["--preset", "gpt-neo-2.7b", "--target", "v5e-8", "--batch", "512", "--out", str(out)])
    [(config, target, _)] = searches
    assert (config.batch_size, target.name, config.seq_len) == (512, "v5e-8", 1024)
    printed = capsys.readouterr().out
    assert "chosen: the fastest that fits" in printed and f"--config {out}" in printed
    written = read_config(out)
    assert written.batch_size == 512 and written.mesh.data * written.mesh.fsdp * written.mesh.tensor == 8
    again = train_command.parse_config(["--config", str(out)], prog="jaxllm train", description="")
    assert again == written


def test_the_line_that_starts_a_planned_adapter_names_a_model(searches, tmp_path, capsys):
    argv = ["--preset", "gpt2-nano", "--target", "v5e-1", "--batch", "8", "--out", f"{tmp_path}/plan.json"]
    command.main([*argv, "--lora.rank", "4"])
    assert "plan.json --start MODEL --data" in capsys.readouterr().out
    command.main(argv)
    assert "plan.json --data" in capsys.readouterr().out


def test_flags_of_a_run_fix_what_they_name(searches, tmp_path):
    command.main(["--preset=gpt2", "--target=v5e-8", "--batch-size=64", "--model.remat=full",
                  "--accumulate=2", "--mesh.fsdp=4", "--offload=none", "--precision=any",
                  "--optimizer=adamw,lion", "--compiles=2", f"--out={tmp_path}/plan.json"])  # fmt: skip
    [(_, _, search)] = searches
    assert search.offloads == ("none",)
    assert search.remats == ("full",) and search.accumulates == (2,) and search.compiles == 2
    assert search.meshes == (MeshConfig(data=-1, fsdp=4),)
    assert len(search.precisions) == 4 and search.optimizers == ("adamw", "lion")
    written = read_config(tmp_path / "plan.json")
    assert written.mesh == MeshConfig(2, 4, 1) and written.accumulate == 2 and written.model.remat == "full"


def test_without_such_flags_numerics_stay_and_the_rest_is_searched(searches, tmp_path):
    command.main(["--preset", "gpt2", "--target", "v5e-1", "--batch", "64", "--out", f"{tmp_path}/plan.json"])
    [(config, _, search)] = searches
    assert (search.precisions, search.optimizers, search.remats, search.meshes) == (None,) * 4
    assert read_config(tmp_path / "plan.json").precision == config.precision == "mixed_o1"


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--preset", "gpt2"], ["--target", "v5e-8"]),
        (["--target", "v5e-7"], ["v5e-7", "nearest"]),
        (["--target", "v5e-²"], ["v5e-²", "nearest"]),
        (["--target", "h100x²"], ["h100x²", "nearest"]),
        (["--target", "v5e"], ["how large the slice is"]),
        (["--target", "v5e-1", "--batch", "many"], ["--batch-size", "many"]),
        (["--target", "v5e-1", "--compiles", "few"], ["--compiles", "few"]),
        (["--target", "v5e-1", "--compiles", "²"], ["--compiles", "²"]),
        (["--target", "v5e-1", "--precision", "fp8"], ["unknown precisions 'fp8'"]),
        (["--target", "v5e-1", "--acumulate", "2"], ["--acumulate", "did you mean '--accumulate'"]),
        (["--target", "v5e-16", "--batch", "3"], ["batch 3 cannot be spread over the 16 devices"]),
        (["--target", "v5e-1", "--preset", "llama-2-7b", "--batch", "1"], ["none of", "fits v5e-1"]),
        (["--target", "v5e-1", "--preset", "bert-nano"], ["causal=False", "take a decoder"]),
        (["--target", "v5e-1", "--config", "nowhere.json"], ["nowhere.json"]),
        (["--config", "a.json", "--preset", "gpt2"], ["--preset and --config"]),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(argv, words, searches, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run(jaxllm_command, ["plan", *argv])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    assert all(word in error for word in words), error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["plan", "train"])
def test_help_lists_the_presets_that_a_command_takes(name, capsys):
    with pytest.raises(SystemExit):
        run(jaxllm_command, [name, "--help"])
    printed = capsys.readouterr().out.partition("--preset NAME")[2].partition("Shown below")[0]
    assert {"llama-nano", "mamba-nano", "t5-nano"} <= set(printed.replace(",", " ").split())
    assert "bert-nano" not in printed


def test_fields_on_the_command_line_win_over_the_file(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"steps": 7, "batch_size": 4, "model": {"num_layers": 3, "vocab_size": None}}))
    argv = ["--config", str(path), "--steps", "9", "--model.embed-dim", "384"]
    config = train_command.parse_config(argv, prog="jaxllm train", description="")
    assert (config.steps, config.batch_size, config.model.num_layers) == (9, 4, 3)
    assert config.model.mlp_dim == 4 * 384 and config.model.head_dim == 32


def test_a_file_for_another_model_is_refused(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"model": {"num_layer": 3}}))
    with pytest.raises(UserError, match="did you mean 'num_layers'"):
        train_command.parse_config(["--config", str(path)], prog="jaxllm train", description="")


@pytest.mark.targets
def test_a_nano_model_is_planned_for_v5e_4_by_the_real_compiler(tmp_path, monkeypatch, capsys):
    if not targets.is_available("v5e-4"):
        pytest.skip("needs libtpu")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    argv = ["--preset", "gpt2-nano", "--target", "v5e-4", "--batch", "8", "--seq-len", "128",
            "--compiles", "1", "--tokenizer", "bytes", "--no-progress", "--out",
            str(tmp_path / "plan.json")]  # fmt: skip
    command.main(argv)
    first = capsys.readouterr().out
    assert "compiler" in first and "chosen" in first
    assert read_config(tmp_path / "plan.json").model.vocab_size is None
    # The second time it comes from the disk.
    monkeypatch.setattr("jaxllm.targets.forecast_cache.compile_train_step", None)
    command.main(argv)
    assert capsys.readouterr().out.splitlines()[2:4] == first.splitlines()[2:4]
