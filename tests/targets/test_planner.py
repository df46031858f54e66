"""The planner with a fake compiler: what it chooses, why the others lost, what it says if nothing fits."""

import dataclasses
import threading

import pytest

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.optim import OptimConfig
from jaxllm.parallel import MeshConfig
from jaxllm.targets import planner
from jaxllm.targets.analytic import estimate
from jaxllm.targets.candidates import Search, candidates
from jaxllm.targets.catalog import get_target
from jaxllm.targets.planner import plan, rank
from jaxllm.text import TrainConfig
from tests.targets.fake_compiler import GPT2, FakeCompiler

ON_DEVICE = Search(offloads=("none",))


def test_the_choice_is_the_fastest_compiled_plan_that_fits():
    """Here the compiler finds that what the estimate likes best is slow."""
    slow = FakeCompiler(time=lambda c: 3.0 if c.model.remat == "dots" else 1.0)
    found = plan(GPT2, "v5e-1", compile=slow)
    fitting = [row for row in found.rows if row.forecast and row.forecast.fits]
    assert len(fitting) >= 2
    assert found.best.forecast.seconds == min(row.forecast.seconds for row in fitting)
    assert found.config.model.remat != "dots"


@pytest.mark.parametrize("memory", [0.7, 1.0, 1.4, 2.5])
def test_the_choice_fits_however_wrong_the_estimate_is(memory):
    found = plan(GPT2, "v5e-1", compile=FakeCompiler(memory))
    assert found.best.forecast.fits
    assert estimate(found.config, "v5e-1").peak_bytes * memory <= get_target("v5e-1").hbm_bytes


def test_what_the_compiler_says_of_one_plan_corrects_the_estimates_of_its_kind():
    """The first of a kind may be too big; those that would be by the same factor are not compiled."""
    found = plan(GPT2, "v5e-1", compile=FakeCompiler(memory=2.5))
    too_big = [row.config.model.remat for row in found.rows if row.forecast and not row.forecast.fits]
    assert too_big and len(too_big) == len(set(too_big))


def test_no_more_is_compiled_than_asked_for_once_something_fits():
    compiler = FakeCompiler()
    plan(GPT2, "v5e-1", Search(compiles=2), compile=compiler)
    assert len(compiler.asked) == 2


def test_a_plan_in_needlessly_many_parts_is_not_compiled():
    compiler = FakeCompiler()
    plan(GPT2, "h100", Search(compiles=4), compile=compiler)
    kinds = [(c.precision, c.model.remat, c.offload, c.mesh) for c in compiler.asked]
    assert len(set(kinds)) == len(kinds)


def test_every_loser_says_why():
    found = plan(GPT2, "v5e-1", compile=FakeCompiler(1.3))
    for row in found.rows[1:]:
        if row.forecast and not row.forecast.fits:
            over = row.forecast.peak_bytes - found.target.hbm_bytes
            assert row.reason == f"too big by {over / 2**30:.2f} GiB"
        elif row.forecast:
            percent = 100 * (row.forecast.seconds / found.best.forecast.seconds - 1)
            assert row.reason == f"{percent:.1f} % slower, {row.forecast.bound} bound"
        else:
            assert row.reason.startswith("not compiled: ")
    reasons = " ".join(row.reason for row in found.rows)
    assert "too big by about" in reasons and "memory bound" in reasons


def test_more_memory_never_makes_the_best_plan_slower():
    config = dataclasses.replace(GPT2, model=models.get_preset("gpt2-xl"))
    times = []
    for gib in (20, 24, 28, 40, 80, 160):
        target = dataclasses.replace(get_target("h100"), hbm_bytes=gib * 2**30)
        configs = candidates(config, target, Search(precisions=("any",)))
        times.append(min(e.seconds for c, e in rank(configs, target) if e.fits))
    assert times == sorted(times, reverse=True) and times[0] > times[-1]


def test_ranking_puts_what_fits_first_and_the_fastest_first_among_it():
    ranked = rank(candidates(GPT2, get_target("v5e-1")), "v5e-1")
    fits = [e.peak_bytes <= 1.15 * e.hbm_bytes for _, e in ranked]
    assert fits == sorted(fits, reverse=True)
    seconds = [e.seconds for (_, e), fit in zip(ranked, fits, strict=True) if fit]
    assert seconds == sorted(seconds)


def test_candidates_only_change_what_may_change():
    target = get_target("v5e-8")
    for config in candidates(GPT2, target):
        model = dataclasses.replace(config.model, remat="none")
        same = dataclasses.replace(config, mesh=GPT2.mesh, accumulate=1, offload="none", model=model)
        assert same == GPT2
        mesh = config.mesh
        assert mesh.data * mesh.fsdp * mesh.tensor == 8 and 12 % mesh.tensor == 0
        assert GPT2.batch_size % (mesh.data * mesh.fsdp * config.accumulate) == 0


def test_no_candidate_splits_a_batch_unevenly():
    found = candidates(dataclasses.replace(GPT2, batch_size=12), get_target("v5e-8"))
    assert {c.mesh.data * c.mesh.fsdp for c in found} == {2, 4}  # 8 does not divide 12; tensor is at most 4
    assert all(12 % (c.mesh.data * c.mesh.fsdp * c.accumulate) == 0 for c in found)


def test_the_search_covers_what_it_is_allowed():
    search = Search(precisions=("any",), optimizers=("adamw", "lion"), remats=("full",), accumulates=(2, 7))
    found = candidates(GPT2, get_target("v5e-1"), search)
    assert {c.precision for c in found} == {"float32", "mixed_o1", "mixed_o2"}  # see below
    assert {c.optim.name for c in found} == {"adamw", "lion"}
    assert {(c.model.remat, c.accumulate) for c in found} == {("full", 2)}  # 7 does not divide 64


@pytest.mark.parametrize(
    "precisions, optimizers, own, expected",
    [
        (("any",), None, "adamw", {"adamw_bf16_sr"}),
        (("bfloat16",), None, "adamw", {"adamw_bf16_sr"}),
        (("any",), None, "lion", set()),
        (("any",), ("adamw", "adamw_bf16_sr"), "adamw", {"adamw_bf16_sr"}),
        (("mixed_o2", "bfloat16"), ("adamw",), "adamw", set()),
        (("bfloat16",), ("adamw",), "adamw", {"adamw"}),  # asked for by name
        (None, None, "adamw", {"adamw"}),  # the run's own choice: training warns
    ],
)
def test_a_choice_never_offers_bfloat16_weights_whose_small_updates_are_lost(
    precisions, optimizers, own, expected
):
    config = dataclasses.replace(GPT2, precision="bfloat16", optim=OptimConfig(name=own))
    search = Search(precisions=precisions, optimizers=optimizers, remats=("full",), accumulates=(2,))
    found = candidates(config, get_target("v5e-1"), search)
    assert {c.optim.name for c in found if c.precision == "bfloat16"} == expected
    assert precisions == ("bfloat16",) or precisions is None or {c.precision for c in found} >= {"mixed_o2"}


def test_a_search_may_keep_the_mesh():
    search = Search(meshes=(MeshConfig(data=-1, fsdp=4),))
    assert {c.mesh for c in candidates(GPT2, get_target("v5e-8"), search)} == {MeshConfig(2, 4, 1)}


def test_nothing_fits_names_the_smallest_change():
    config = dataclasses.replace(GPT2, model=models.get_preset("gpt2-xl"))
    with pytest.raises(UserError) as error:
        plan(config, "v5e-1", ON_DEVICE, compile=FakeCompiler())
    sentence = str(error.value)
    assert sentence.startswith("none of 28 plans fits v5e-1: the smallest needs ")
    assert "what would fit by the estimate: " in sentence and "--target v5e-4" in sentence
    assert "\n" not in sentence and "--batch 1 " not in sentence  # no batch is small enough
    assert plan(config, "v5e-4", compile=FakeCompiler()).best.forecast.fits


@pytest.mark.parametrize(
    "model, batch_size, gib, flags",
    [
        (models.get_preset("gpt2-xl"), 4, 17, {"--precision", "--target"}),
        # 7 billion parameters: twice and four times the devices are too few.
        (models.ModelConfig(num_layers=32, embed_dim=4096, num_heads=32), 64, 15.75, {"--target"}),
    ],
)
def test_nothing_fits_offers_what_would(model, batch_size, gib, flags):
    """Every change in the sentence is tried: each alone makes the run fit."""
    config = dataclasses.replace(GPT2, model=model, batch_size=batch_size)
    target = dataclasses.replace(get_target("v5e-1"), hbm_bytes=int(gib * 2**30))
    with pytest.raises(UserError) as error:
        plan(config, target, ON_DEVICE, compile=FakeCompiler())
    changes = str(error.value).partition("estimate: ")[2].split(" or ")
    assert {change.split()[0] for change in changes} >= flags
    for change in changes:
        flag, value = change.split()
        search, machine, smaller = ON_DEVICE, target, config
        if flag == "--precision":
            search = dataclasses.replace(ON_DEVICE, precisions=(value,))
        elif flag == "--target":
            machine = value
        else:
            field = {"--seq-len": "seq_len", "--batch": "batch_size"}[flag]
            smaller = dataclasses.replace(config, **{field: int(value)})
        assert plan(smaller, machine, search, compile=FakeCompiler()).best.forecast.fits


def test_what_does_not_fit_the_device_lies_in_the_host_s_memory():
    """1.5 billion parameters take 25 GB with their moments: more than a v5e's 16, less than its host's."""
    config = dataclasses.replace(GPT2, model=models.get_preset("gpt2-xl"), batch_size=8)
    found = plan(config, "v5e-1", compile=FakeCompiler())
    assert found.config.offload == "optimizer" and found.best.forecast.bound == "host"
    assert plan(GPT2, "v5e-1", compile=FakeCompiler()).config.offload == "none"  # nothing waits for the link
    # 6.7 billion take 107 GB, with gradients: too much for either.
    config = dataclasses.replace(GPT2, model=models.ModelConfig(num_layers=32, embed_dim=4096, num_heads=32))
    with pytest.raises(UserError, match="none of .* plans fits v5e-1"):
        plan(config, "v5e-1", compile=FakeCompiler())


def test_nothing_fits_believes_the_compiler_over_the_estimate():
    """The estimates fit; the compiler says ten times as much."""
    with pytest.raises(UserError, match="none of .* fits v5e-1"):
        plan(GPT2, "v5e-1", compile=FakeCompiler(memory=10))


def test_a_batch_that_cannot_be_spread_is_one_sentence():
    with pytest.raises(UserError, match="batch 1 cannot be spread over the 16 devices of v5e-16"):
        plan(dataclasses.replace(GPT2, batch_size=1), "v5e-16", compile=FakeCompiler())


@pytest.mark.parametrize(
    "values, words",
    [
        ({"precisions": ("fp8",)}, ["unknown precisions 'fp8'", "any"]),
        ({"optimizers": ("adamm",)}, ["unknown optimizer 'adamm'", "did you mean"]),
        ({"compiles": 0}, ["compiles is 0"]),
    ],
)
def test_bad_searches_are_one_sentence(values, words):
    with pytest.raises(UserError) as error:
        Search(**values)
    assert all(word in str(error.value) for word in words)


def test_a_vocabulary_left_to_the_tokenizer_is_planned_for_and_left_open():
    config = TrainConfig(tokenizer="bpe:512", batch_size=8)
    compiler = FakeCompiler()
    found = plan(config, "v5e-1", compile=compiler)
    assert {c.model.vocab_size for c in compiler.asked} == {512} and found.config.model.vocab_size is None
    with pytest.raises(UserError, match="set model.vocab_size"):
        plan(dataclasses.replace(config, tokenizer="char"), "v5e-1", compile=compiler)


def test_nothing_is_compiled_that_saves_memory_for_nothing():
    """Where a plan fits, the same with moments in the host's memory, or in more parts, is never faster."""
    compiler = FakeCompiler()
    found = plan(GPT2, "v5e-8", Search(compiles=3), compile=compiler)
    assert len(compiler.asked) == 3 and {config.offload for config in compiler.asked} == {"none"}
    reasons = [row.reason for row in found.rows if row.config.offload == "optimizer" and row.fits]
    assert reasons.count("not compiled: a compiled plan with more in the host's memory than it needs") > 5


def test_plans_that_are_compiled_at_once_are_of_different_kinds():
    """Two threads wait for each other: with one at a time this would end in the barrier's timeout."""
    together, compiler = threading.Barrier(2, timeout=30), FakeCompiler()

    def compile(config, target):
        together.wait()
        return compiler(config, target)

    plan(GPT2, "v5e-8", Search(precisions=("any",)), compile=compile)
    one, other = compiler.asked
    assert (one.precision, one.model.remat) != (other.precision, other.model.remat)
    times = [estimate(config, "v5e-8").seconds for config in (one, other)]
    assert max(times) < 1.25 * min(times)


def test_nothing_of_the_search_is_left_running(monkeypatch):
    """The progress bar closes even when nothing fits, and not because nobody holds it."""
    bars, bar = [], planner.tqdm

    class Bar(bar):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            bars.append(self)
            self.closed = False

        def close(self):
            self.closed = True
            super().close()

    monkeypatch.setattr(planner, "tqdm", Bar)
    config = dataclasses.replace(GPT2, model=models.get_preset("gpt-neo-2.7b"))
    with pytest.raises(UserError):
        plan(config, "v5e-1", ON_DEVICE, compile=FakeCompiler())
    assert bars[0].closed  # the one of compiling; that over plans in tiles is off
