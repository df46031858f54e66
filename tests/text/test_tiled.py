"""`--engine tiles` trains as the other engine does, and their checkpoints are the same."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.text import prepare, train
from jaxllm.tiles import kernels
from jaxllm.tiles.config import TilesConfig, TileSizes
from jaxllm.tiles.execute import TaskFailed
from jaxllm.train import NonFiniteLoss
from jaxllm.train.checkpoint import Checkpoints
from jaxllm.train.writers import read_metrics

ONE = jax.devices()[:1]


def losses(config):
    return [row["loss"] for row in read_metrics(config.out) if "loss" in row]


@pytest.fixture
def small(tiny):
    """A function that makes the config of a run of a small tiled model."""
    config = tiny()
    model = dataclasses.replace(config.model, num_layers=1)
    return lambda **values: tiny(**(dict(engine="tiles", model=model, save_every=2) | values))


@pytest.mark.slow
def test_an_engine_resumes_what_the_other_began(small, tmp_path, steps_shared):
    straight = small(engine="jit", out=str(tmp_path / "straight"))
    mixed = small(out=str(tmp_path / "mixed"))
    want = train(straight, devices=ONE)
    train(dataclasses.replace(mixed, engine="jit", stop_after=1), devices=ONE)
    train(dataclasses.replace(mixed, stop_after=2), devices=ONE)
    got = train(dataclasses.replace(mixed, engine="jit"), devices=ONE)
    np.testing.assert_allclose(losses(mixed), losses(straight), rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got.params, want.params)
    assert got.evaluation["loss"] == pytest.approx(want.evaluation["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_failing_task_is_named_and_the_last_checkpoint_is_usable(small, monkeypatch):
    config = small()
    train(dataclasses.replace(config, stop_after=2), devices=ONE)

    def burn(*values, **static):
        raise RuntimeError("out of memory")

    kernels.compiled.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "GELU", dataclasses.replace(kernels.GELU, function=burn))
        with pytest.raises(
            TaskFailed, match=r"task gelu\(pre0\[0,0,0\], act0\[0,0,0\]\) failed: out of memory"
        ):
            train(config, devices=ONE)
    with Checkpoints(f"{config.out}/checkpoints") as kept:
        assert kept.latest() == 2
    assert train(config, devices=ONE).steps == 2
    assert len(losses(config)) == 4


def test_a_loss_that_is_not_finite_leaves_the_state_from_before(small):
    config = small(optim=dataclasses.replace(small().optim, learning_rate=1e30, clip_norm=0.0))
    with pytest.raises(NonFiniteLoss) as failure:
        train(config, devices=ONE)
    with Checkpoints(f"{config.out}/checkpoints") as kept:
        assert kept.latest() == failure.value.updates
        state, _ = kept.restore(failure.value.updates, prepare(config, devices=ONE).shapes)
    before = dataclasses.replace(config, out=config.out + "-before", stop_after=failure.value.updates)
    jax.tree.map(np.testing.assert_array_equal, state.params, train(before, devices=ONE).params)


@pytest.mark.slow
def test_an_update_that_is_not_finite_is_named_and_leaves_the_state_from_before(small):
    """Positions past seq_len have no gradient: 0 / (0 + eps) is NaN in the first update."""
    config = small(optim=dataclasses.replace(small().optim, eps=0.0))
    with pytest.raises(NonFiniteLoss, match="the update was not finite at step 1 .* the optimizer's eps"):
        train(config, devices=ONE)
    with Checkpoints(f"{config.out}/checkpoints") as kept:
        assert kept.latest() == 0
        state, _ = kept.restore(0, prepare(config, devices=ONE).shapes)
    before = prepare(config, devices=ONE).init(jax.random.key(config.seed))
    jax.tree.map(np.testing.assert_array_equal, state.params, before.params)


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(engine="tile"), "unknown engine 'tile'; did you mean 'tiles'"),
        (dict(precision="bfloat16"), "engine 'tiles' takes precision=float32 and not bfloat16"),
        (dict(z_loss=1e-4), "engine 'tiles' takes z_loss=0.0 and not 0.0001"),
        (dict(subnetwork="est-gpt2-like"), "subnetworks of your own=False and not True"),
    ],
)
def test_what_tiles_do_not_compute_is_refused(tiny, values, message):
    with pytest.raises(UserError, match=message):
        train(tiny(**({"engine": "tiles"} | values)), devices=ONE)


def test_bad_values_of_the_engine_are_refused():
    with pytest.raises(UserError, match="unknown tiles.policy 'heft'"):
        TilesConfig(policy="heft")
    with pytest.raises(UserError, match="tiles.device_bytes is -1"):
        TilesConfig(device_bytes=-1)
    assert TilesConfig(TileSizes(seq=8)).sizes.seq == 8


def test_a_task_that_fits_no_device_is_named_before_the_run(tiny):
    config = tiny(engine="tiles", tiles=TilesConfig(device_bytes=1000))
    with pytest.raises(UserError, match=r"task \w+\(.*\) needs \d+ bytes of tiles at once"):
        train(config, devices=ONE)
