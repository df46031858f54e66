"""What a plan writes and shows, and the forecasts that are kept on disk."""

import dataclasses
import importlib
import json
import math

import jax
import pytest

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.optim import OptimConfig
from jaxllm.targets import forecast_cache, planner
from jaxllm.targets.analytic import estimate
from jaxllm.targets.candidates import Search
from jaxllm.targets.catalog import get_target
from jaxllm.targets.forecast import Forecast
from jaxllm.targets.planner import plan
from jaxllm.text.config_file import config_from_dict, read_config
from jaxllm.train import to_dict
from tests.targets.fake_compiler import GPT2, FakeCompiler, FakeForecast


def test_the_written_config_is_the_chosen_one(tmp_path):
    model = models.get_preset("gpt-neo-125m", sink_logit="learned")
    config = dataclasses.replace(GPT2, model=model, optim=OptimConfig(name="lion", eps=1e-7))
    found = plan(config, "v5e-8", Search(precisions=("any",)), compile=FakeCompiler())
    found.write(tmp_path / "plan.json")
    assert read_config(tmp_path / "plan.json") == found.config
    assert config_from_dict(json.loads(json.dumps(to_dict(found.config)))) == found.config


def test_infinities_survive_the_file(tmp_path):
    assert config_from_dict(json.loads(json.dumps(to_dict(GPT2)))).model.sink_logit == -math.inf


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", ["is not JSON"]),
        ("[1]", ["holds no JSON object"]),
        ('{"batch_sise": 3}', ["batch_sise", "did you mean 'batch_size'"]),
        ('{"mesh": {"dat": 3}}', ["mesh", "did you mean 'data'"]),
        ('{"batch_size": 0}', ["batch_size is 0"]),
        ('{"batch_size": "many"}', ["batch_size is 'many'", "a whole number"]),
        (None, ["cannot read", "No such file"]),
    ],
)
def test_a_bad_config_file_is_one_sentence(text, words, tmp_path):
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as error:
        read_config(path)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_the_table_shows_the_ranking(tmp_path):
    found = plan(GPT2, "v5e-1", compile=FakeCompiler(1.3))
    lines = found.table(limit=5).splitlines()
    assert lines[0] == "all of them: precision mixed_o1, optimizer adamw" and "precision" not in lines[1]
    assert len(lines) == 2 + 5 + 1 and lines[2].endswith("chosen: the fastest that fits")
    assert f"{found.best.peak_bytes / 2**30:.2f} GiB" in lines[2]
    assert f"{64 * 1024 / found.best.seconds:,.0f}  " in lines[2]  # tokens/s
    assert f"and {len(found.rows) - 5} more" in lines[-1]


def test_rows_go_by_time_those_that_fit_first_and_each_says_why_it_is_there():
    """The compiler takes 0.8 of the estimated time: what it was not asked about is corrected by that."""
    found = plan(GPT2, "v5e-1", compile=FakeCompiler(1.3, time=0.8))
    fits = [row.fits for row in found.rows]
    assert fits == sorted(fits, reverse=True) and not all(fits)
    for rows in (found.rows[: sum(fits)], found.rows[sum(fits) :]):
        seconds = [row.seconds for row in rows]
        assert seconds == sorted(seconds)
    for row in found.rows:
        assert row.seconds == pytest.approx(0.8 * estimate(row.config, "v5e-1").seconds)
        assert ("too big" in row.reason) == (not row.fits), row.reason
    shown = found.table(limit=12)
    assert shown.count("too big") >= 4 and "~" in shown


def test_the_summary_says_how_long_the_run_takes_and_where_the_bytes_go():
    found = plan(dataclasses.replace(GPT2, steps=30_000), "v5e-1", compile=FakeCompiler())
    seconds = found.best.seconds
    lines = found.summary().splitlines()
    assert lines[0].startswith(f"{65536 / seconds:,.0f} tokens/s; 30,000 steps, 1,966,080,000 tokens, take ")
    assert f"take {30_000 * seconds / 3600:.1f} hours" in lines[0] and len(lines) == 1
    breakdown = {"parameters": 2**30, "optimizer": 2**31, **{f"workspace {i}": 2**20 for i in range(9)}}
    blank = dict.fromkeys((field.name for field in dataclasses.fields(Forecast)), 0)
    whole = blank | dict(peak_bytes=3 * 2**30, breakdown=breakdown, seconds=seconds)
    row = dataclasses.replace(found.best, forecast=Forecast(**whole))
    where = planner.plan_summary(row, 10).splitlines()[1]
    assert where.startswith("a device's 3.00 GiB: optimizer 2.00 GiB, parameters 1.00 GiB, workspace 0 1.00 ")
    assert where.endswith("other 5.00 MiB")


def test_a_forecast_is_compiled_once_and_again_when_it_matters(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(forecast_cache, "Forecast", FakeForecast)
    compiler, target = FakeCompiler(), get_target("v5e-1")
    monkeypatch.setattr(forecast_cache, "compile_train_step", compiler)

    def ask(config, target=target):
        return forecast_cache.cached_forecast(config, target)

    first = ask(GPT2)
    assert ask(GPT2) == first and len(compiler.asked) == 1
    ask(dataclasses.replace(GPT2, steps=7, out="elsewhere", seed=3))  # no matter for the step
    assert len(compiler.asked) == 1
    ask(dataclasses.replace(GPT2, accumulate=2))
    ask(GPT2, get_target("v6e-1"))
    with monkeypatch.context() as changed:
        changed.setattr(forecast_cache, "source_digest", lambda: "other code")
        ask(GPT2)
    with monkeypatch.context() as changed:
        changed.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_scoped_vmem_limit_kib=1024")
        ask(GPT2)
    assert len(compiler.asked) == 5
    for before, setting in enumerate((jax.default_matmul_precision("highest"), jax.default_prng_impl("rbg"),
                                      jax.threefry_partitionable(False)), 5):  # fmt: skip
        with setting:
            ask(GPT2)
        assert len(compiler.asked) == before + 1
    # An optimizer of the user's own: its name stays, its code changes.
    module = tmp_path / "own_optimizer_of_the_test.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    for body in ("import optax\n\ndef build(learning_rate): return optax.sgd(learning_rate)\n",
                 "import optax\n\ndef build(learning_rate): return optax.adam(learning_rate)\n"):  # fmt: skip
        module.write_text(body)
        importlib.invalidate_caches()
        ask(dataclasses.replace(GPT2, optim=OptimConfig(name=f"{module.stem}:build")))
    assert len(compiler.asked) == 10
    for path in (tmp_path / "jaxllm" / "forecasts").iterdir():
        path.write_text("{")  # cut short
    assert ask(GPT2) == first and len(compiler.asked) == 11
