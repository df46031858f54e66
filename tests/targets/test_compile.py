"""Forecasts of small programs whose memory, FLOPs and traffic are known."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm import models, targets
from jaxllm.errors import UserError
from jaxllm.parallel import MeshConfig


def available(*values):
    """Return a parameter set, the target last, that is skipped where its compiler is not installed."""
    reason = "needs the compiler of a target that is not here"
    skip = pytest.mark.skipif(not targets.is_available(values[-1]), reason=reason)
    return pytest.param(*values, marks=[pytest.mark.targets, skip])


def shape(*dims, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dims, dtype)


def update(params, batch):
    def loss(params):
        return jnp.mean(jnp.tanh(batch @ params["in"]) @ params["out"])

    grads = jax.grad(loss)(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)


UPDATE = ({"in": shape(256, 512), "out": shape(512, 64)}, shape(1024, 256))


@pytest.mark.parametrize("name", ["cpu", available("v5e-1"), available("h100")])
def test_the_breakdown_names_the_arguments_exactly_and_sums_to_the_peak(name):
    forecast = targets.compile(update, UPDATE, name)
    columns = 128 if name == "v5e-1" else 64  # a tile of a TPU is 128 wide; or the array lies transposed
    assert forecast.breakdown["parameters"] in [(256 * 512 + 512 * n) * 4 for n in (columns, 64)]
    assert forecast.breakdown["batch"] == 1024 * 256 * 4
    assert sum(forecast.breakdown.values()) == forecast.peak_bytes


def test_the_backward_pass_keeps_what_the_forward_pass_saved():
    forecast = targets.compile(update, UPDATE, "cpu")
    hidden = 1024 * 512 * 4
    temporaries = {k: v for k, v in forecast.breakdown.items() if k not in ("parameters", "batch", "outputs")}
    # tanh's value lives until its gradient; not more than three arrays of its size are needed.
    assert hidden <= sum(temporaries.values()) <= 3 * hidden
    assert forecast.simulated_temporaries == pytest.approx(forecast.compiler_temporaries, rel=0.1)


def test_donated_arguments_are_counted_once():
    kept = targets.compile(update, UPDATE, "cpu")
    donated = targets.compile(update, UPDATE, "cpu", donate=0)
    stats = jax.jit(update, donate_argnums=0).lower(*UPDATE).compile().memory_analysis()
    params, batch = (256 * 512 + 512 * 64) * 4, 1024 * 256 * 4
    assert kept.breakdown["outputs"] >= params
    assert donated.breakdown.get("outputs", 0) < 64  # the tuple of results
    assert donated.peak_bytes - stats.temp_size_in_bytes == pytest.approx(params + batch, abs=64)
    assert donated.peak_bytes < kept.peak_bytes


def test_named_scopes_divide_the_breakdown():
    def loss(w, x):
        with jax.named_scope("hidden"):
            h = jnp.sin(x @ w)
        with jax.named_scope("head"):
            return jnp.sum(jnp.cos(h @ w.T) ** 2)

    forecast = targets.compile(jax.grad(loss), [shape(256, 256), shape(2048, 256)], "cpu")
    seen = {label for _, live in forecast.timeline for label in live}
    assert {"activations: hidden", "activations: head"} <= seen
    assert any(label.startswith("backward: head") for label in seen)


@pytest.mark.parametrize("name", ["cpux8", available("v5e-4"), available("h100x8")])
def test_collective_bytes_are_those_of_a_ring_along_each_axis(name):
    place = targets.mesh(MeshConfig(data=-1, fsdp=2), name)
    n, data = 4 * 1024, place.shape["data"]

    def exchange(x):
        gathered = jax.lax.all_gather(x, "fsdp", tiled=True)  # 2n on each device, of which it sends n
        return jax.lax.psum(gathered, "data")  # 2 (data - 1) / data of 2n

    def body(x):
        out = jax.shard_map(
            exchange, mesh=place, in_specs=PartitionSpec(("data", "fsdp")), out_specs=PartitionSpec("fsdp"),
            check_vma=False,
        )  # fmt: skip
        return out(x)

    sharding = NamedSharding(place, PartitionSpec(("data", "fsdp")))
    x = jax.ShapeDtypeStruct((n * place.size,), jnp.float32, sharding=sharding)
    sent = targets.compile(body, [x], name).collective_bytes
    assert sent["fsdp"] == n * 4
    assert sent["data"] == 2 * (data - 1) / data * 2 * n * 4
    assert set(sent) == {"data", "fsdp"}


def test_a_loop_multiplies_what_it_sends():
    place = targets.mesh(MeshConfig(data=8), "cpux8")

    def body(x):
        def add(total, _):
            return jax.lax.psum(jnp.sin(total), "data"), None

        return jax.lax.scan(add, x, None, length=7)[0]

    mapped = jax.shard_map(
        body, mesh=place, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False
    )
    x = jax.ShapeDtypeStruct((1000,), jnp.float32, sharding=NamedSharding(place, PartitionSpec()))
    assert targets.compile(mapped, [x], "cpux8").collective_bytes == {"data": 7 * 2 * 7 / 8 * 4000}


FAMILIES = ("gpt2-nano", "gpt-neo-nano", "llama-nano")
BATCH, LENGTH = 4, 32  # no longer than gpt-neo's window, so that the full square is what is defined


def forward_and_backward(config):
    def step(params, tokens):
        return jax.grad(lambda p: jnp.mean(models.apply(config, p, tokens) ** 2))(params)

    params = jax.eval_shape(lambda: models.init(config, jax.random.key(0)))
    return targets.compile, step, (params, shape(BATCH, LENGTH, dtype=jnp.int32))


@pytest.mark.parametrize(
    ("family", "layers", "name"),
    [
        *((family, "scanned", "cpu") for family in FAMILIES if family != "gpt2-nano"),
        ("gpt2-nano", "unrolled", "cpu"),
        pytest.param("gpt2-nano", "scanned", "cpu", marks=pytest.mark.slow),
        *(pytest.param(family, "unrolled", "cpu", marks=pytest.mark.slow)
          for family in FAMILIES if family != "gpt2-nano"),
        # One family is enough to check how another compiler spells its products.
        available("llama-nano", "scanned", "v5e-1"),
        available("llama-nano", "scanned", "h100"),
    ],
)
def test_flops_of_the_compiled_program_are_the_model_s(family, layers, name):
    """Within 2 %: a scanned loop is multiplied out, and a single trip is what the compiler unrolls."""
    preset = models.get_preset(family)
    windows = preset.windows if layers == "unrolled" else preset.windows[:1]
    windows = tuple(w or LENGTH for w in windows) if layers == "scanned" else (LENGTH, LENGTH)
    config = dataclasses.replace(preset, windows=windows, attention_implementation="reference")
    compile, step, args = forward_and_backward(config)
    counted = sum(compile(step, args, name).flops.values())
    assert counted == pytest.approx(config.flops_per_token(LENGTH) * BATCH * LENGTH, rel=0.02)


def test_a_program_beyond_the_device_does_not_fit():
    small = dataclasses.replace(targets.get_target("cpu"), hbm_bytes=2**20)
    forecast = targets.compile(update, UPDATE, small)
    assert not forecast.fits
    assert "DOES NOT FIT" in str(forecast)


@pytest.mark.parametrize("name", [available("v5e-1")])
def test_a_program_that_the_compiler_gives_up_is_a_forecast_too(name):
    forecast = targets.compile(lambda x: jnp.tanh(x @ x) @ x, [shape(60_000, 60_000)], name)
    assert not forecast.fits and forecast.failure
    assert forecast.peak_bytes > 2 * 60_000**2 * 4  # the argument, and the product at least
    assert forecast.breakdown["arguments"] == 60_000**2 * 4
    again = targets.Forecast.from_dict(json.loads(json.dumps(forecast.to_dict(), allow_nan=False)))
    assert again == forecast and math.isinf(again.seconds)
    assert "DOES NOT FIT" in str(forecast)


def test_what_does_not_fit_is_told_of_a_function_of_any_number_of_arguments():
    class Function:  # jitted already, of a compiler that gives up
        __name__ = "several"

        def __call__(self, first, *others):
            pass

        def lower(self, *args):
            return self

        def compile(self, compiler_options):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 20.0G of 15.7G hbm.")

    sizes = [shape(8), shape(16), {"w": shape(32)}]
    forecast = targets.compile(Function(), sizes, "cpu", labels=lambda path: path)
    assert not forecast.fits and forecast.peak_bytes == 20 * 2**30
    del forecast.breakdown["unattributed"]
    assert forecast.breakdown == {"first": 32, "others[0]": 64, "others[1]['w']": 128}


def test_a_forecast_survives_json_and_renders(tmp_path):
    forecast = targets.compile(update, UPDATE, "cpu")
    assert targets.Forecast.from_dict(json.loads(json.dumps(forecast.to_dict(), allow_nan=False))) == forecast
    for word in ("memory", "parameters", "compute", "network", "MFU", "bound"):
        assert word in str(forecast)
    forecast.plot(tmp_path / "memory.png")
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["memory.png"]


def test_seconds_are_the_slower_of_roofline_and_network_over_the_efficiency():
    half = dataclasses.replace(targets.get_target("cpu"), efficiency=0.5)
    forecast = targets.compile(update, UPDATE, half)
    assert forecast.seconds == pytest.approx(2 * max(forecast.roofline_seconds, forecast.network_seconds))
    assert forecast.roofline_seconds >= max(forecast.compute_seconds, forecast.memory_seconds) * 0.999
    assert forecast.mfu == pytest.approx(
        sum(forecast.flops.values()) / forecast.seconds / half.peak_flops["f32"]
    )


def test_a_shape_that_cannot_be_split_is_told_in_one_sentence():
    place = targets.mesh(MeshConfig(data=8), "cpux8")
    x = jax.ShapeDtypeStruct((12, 4), jnp.float32, sharding=NamedSharding(place, PartitionSpec("data")))
    with pytest.raises(UserError) as error:
        targets.compile(jnp.sin, [x], "cpux8")
    assert "shape (12, 4) cannot be split as ('data',) over the mesh data=8" in str(error.value)


def test_a_mesh_that_does_not_cover_the_target_is_refused():
    with pytest.raises(UserError, match="does not cover 8 devices"):
        targets.mesh(MeshConfig(data=3), "cpux8")
