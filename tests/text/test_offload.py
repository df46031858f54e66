"""Training with state in the host's memory, against training without."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.optim import OptimConfig
from jaxllm.parallel import HOST_MEMORY, MeshConfig
from jaxllm.subnetwork import Rates, Schedule, Stage
from jaxllm.text import TrainConfig, prepare, train
from jaxllm.tiles import TilesConfig
from jaxllm.train import NonFiniteLoss, state
from tests.text.steps import take_steps

pytestmark = pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="XLA for CPUs aborts")


@pytest.fixture(autouse=True)
def small_arrays_move(monkeypatch):
    monkeypatch.setattr(state, "_WORTH_MOVING", 2**10)


def with_remat(config: TrainConfig, remat: str) -> TrainConfig:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, remat=remat))


def numbers(tree):
    return [np.asarray(jax.device_get(x), np.float64) for x in jax.tree.leaves(tree)]


def on_host(tree):
    return {
        jax.tree_util.keystr(path)
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
        if x.sharding.memory_kind == HOST_MEMORY
    }


ONE = MeshConfig(data=8)
SLOW = pytest.mark.slow
SPLIT = MeshConfig(data=1, fsdp=4, tensor=2)


@pytest.mark.slow
def test_moments_in_the_host_s_memory_change_no_bit(tiny):
    """Split over fsdp and tensor; of replicas: with stochastic rounding, below."""
    config = tiny(mesh=SPLIT)
    losses, plain = take_steps(config, 3)
    losses_away, away = take_steps(dataclasses.replace(config, offload="optimizer"), 3)
    assert losses_away == losses
    for a, b in zip(numbers(plain), numbers(away), strict=True):
        np.testing.assert_array_equal(a, b)
    moved = on_host(away)
    assert moved and all("opt_state" in name and "layers" in name for name in moved)
    assert len(moved) == 2 * len({name.split("layers")[1] for name in moved})  # both moments of each


@pytest.mark.parametrize(
    "remat, parts, changes",
    [
        pytest.param("dots", 2, {}, marks=SLOW),  # "full" is taken with subnetworks, below
        ("offload", 2, dict(position="rotary", num_kv_heads=2, norm="rmsnorm", windows=(0, 8))),
    ],
)
@pytest.mark.slow
def test_layers_come_from_the_host_s_memory_for_the_same_losses(tiny, remat, parts, changes):
    config = with_remat(tiny(mesh=SPLIT, accumulate=parts), remat)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))
    losses, plain = take_steps(with_remat(config, "full"), 3)
    losses_away, away = take_steps(dataclasses.replace(config, offload="state"), 3)
    np.testing.assert_allclose(losses_away, losses, rtol=1e-6)
    for a, b in zip(numbers(plain.params), numbers(away.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert {name.split("layers")[1] for name in on_host(away.params)} == {
        name.split("layers")[1] for name in on_host(away.opt_state)
    }


@SLOW
def test_tiles_train_a_model_whose_arrays_lie_in_the_host_s_memory(tiny):
    """What tiles start from, evaluation and checkpoints are of it; the numbers are the compiled step's."""
    config, devices = tiny(steps=3, mesh=MeshConfig(1, 1, 1)), jax.devices()[:1]
    plain_job = prepare(config, devices=devices)
    losses, plain = take_steps(config, 3, devices=devices)
    tiles = TilesConfig(device_bytes=400_000, flash=True)
    config = dataclasses.replace(config, engine="tiles", offload="state", tiles=tiles)
    losses_tiled, tiled = take_steps(config, 3, devices=devices)
    np.testing.assert_allclose(losses_tiled, losses, rtol=1e-5)
    assert on_host(tiled.params) and on_host(tiled.opt_state)
    for a, b in zip(numbers(plain.params), numbers(tiled.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    batch = plain_job.put(next(iter(plain_job.batches())))
    want = plain_job.eval_step(plain.params, None, batch)
    got = prepare(config, devices=devices).eval_step(tiled.params, None, batch)
    np.testing.assert_allclose(got, want, rtol=1e-4)


@SLOW
def test_a_run_moves_to_the_host_and_back_between_sessions(tiny):
    """A checkpoint knows nothing of memories: a run may be resumed with another offload."""
    config = tiny(steps=4)
    whole = train(dataclasses.replace(config, out=config.out + "-whole"), devices=jax.devices()[:1])
    train(dataclasses.replace(config, offload="optimizer", stop_after=2), devices=jax.devices()[:1])
    resumed = train(config, devices=jax.devices()[:1])
    for a, b in zip(numbers(whole.params), numbers(resumed.params), strict=True):
        np.testing.assert_array_equal(a, b)


@SLOW
def test_an_update_in_place_that_is_not_finite_is_named_and_never_saved(tiny):
    """Positions past seq_len have no gradient and become NaN, which no loss shows."""
    config = tiny(offload="optimizer", optim=OptimConfig(learning_rate=1e-2, eps=0.0, warmup_steps=2))
    for save_every in (1, 100):
        run = dataclasses.replace(config, save_every=save_every, out=f"{config.out}-{save_every}")
        said = f"update was not finite at step {min(save_every, 4)} or before .* its last checkpoint"
        with pytest.raises(NonFiniteLoss, match=said):
            train(run, devices=jax.devices()[:1])
        assert not list(Path(run.out, "checkpoints").glob("*"))


@SLOW
def test_stochastic_rounding_and_subnetworks_compose_with_moments_in_the_host_s_memory(tiny):
    config = tiny(
        precision="bfloat16", optim=OptimConfig(name="adamw_bf16_sr", learning_rate=1e-2, warmup_steps=2),
        subnetwork="est-gpt2-like", mesh=ONE,
    )  # fmt: skip
    losses, plain = take_steps(config, 1)
    losses_away, away = take_steps(dataclasses.replace(config, offload="optimizer"), 1)
    assert losses_away == losses
    for a, b in zip(numbers(plain), numbers(away), strict=True):
        np.testing.assert_array_equal(a, b)
    assert on_host(away)


@pytest.mark.slow
@pytest.mark.parametrize(
    "remat, parts, rates, changes",
    [
        ("full", 1, Rates(layers=0.5, heads=0.5, mlp=0.5), {}),
        ("offload", 2, Rates(layers=0.5, mlp=0.5), dict(position="rotary", norm="rmsnorm", windows=(0, 8))),
    ],
)
def test_subnetworks_are_cut_out_of_layers_that_come_from_the_host_s_memory(
    tiny, remat, parts, rates, changes
):
    config = with_remat(tiny(mesh=SPLIT, accumulate=parts), remat)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, num_layers=4, **changes))
    drawn = dict(subnetworks=Schedule((Stage(1.0, rates),), layer_scale="inverse"))
    losses, plain = take_steps(with_remat(config, "full"), 3, **drawn)
    losses_away, away = take_steps(dataclasses.replace(config, offload="state"), 3, **drawn)
    np.testing.assert_allclose(losses_away, losses, rtol=1e-6)
    for a, b in zip(numbers(plain.params), numbers(away.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert on_host(away.params) and on_host(away.opt_state)
    job = prepare(with_remat(config, "full"), **drawn)
    total, count = job.eval_step(job.init(jax.random.key(0)).params, None, job.put(next(job.batches())))
    assert abs(total / count - losses[0]) > 1e-4  # what is evaluated, the whole model, is another one


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(offload="moon"), "unknown offload 'moon'"),
        (dict(offload="optimizer", engine="tiles"), "set tiles.device_bytes"),
        (dict(offload="state"), "model.remat=none would keep"),
    ],
)
def test_what_cannot_be_offloaded_is_refused_before_any_data_is_read(tiny, changes, message):
    config = with_remat(tiny(), changes.pop("remat", "none"))
    with pytest.raises(UserError, match=message):
        dataclasses.replace(config, **changes)
