"""The loop trains anything that is a task; what a task must be is said before a compile."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm.errors import UserError
from jaxllm.parallel import MeshConfig
from jaxllm.train import NonFiniteLoss, RunConfig, Task, train
from jaxllm.train.checkpoint import Checkpoints
from jaxllm.train.task import check_axes, check_evaluation
from jaxllm.train.writers import read_metrics

WANTED = np.array([1.0, -2.0, 0.5], np.float32)


def batches(seed=0):
    draw = np.random.default_rng(seed)
    while True:
        x = draw.normal(size=(16, 3)).astype(np.float32)
        yield {"x": x, "y": x @ WANTED + 3}


def loss(params, batch, key):
    error = batch["x"] @ params["w"] + params["b"] - batch["y"]
    return jnp.mean(error**2), {"token_count": jnp.float32(error.size)}


def evaluate(params, mean_loss):
    mean, count = mean_loss(params, [next(batches(seed=1))])
    return {"loss": mean, "points": count, "bias": float(params["b"])}


AXES = {"w": ("embed",), "b": ()}
TASK = Task(lambda key: {"w": jnp.zeros(3), "b": jnp.zeros(())}, AXES, batches, loss, evaluate)


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_a_regression_is_trained_checkpointed_and_resumed_bit_for_bit(tmp_path, devices):
    mesh = MeshConfig(fsdp=devices, data=1)
    config = RunConfig(steps=60, save_every=20, eval_every=30, progress=False, mesh=mesh)
    options = dict(optimizer=optax.adam(0.1), devices=jax.devices()[:devices])
    whole, halves = (dataclasses.replace(config, out=str(tmp_path / name)) for name in ("whole", "halves"))
    straight = train(TASK, whole, **options)
    train(TASK, dataclasses.replace(halves, stop_after=23), **options)
    resumed = train(TASK, halves, **options)
    assert resumed.steps == 37
    jax.tree.map(np.testing.assert_array_equal, resumed.params, straight.params)
    assert resumed.evaluation == straight.evaluation
    # optax alone, on one device
    params, take = TASK.init(None), batches()
    state, step = options["optimizer"].init(params), jax.jit(jax.grad(lambda p, b: loss(p, b, None)[0]))
    for _ in range(60):
        updates, state = options["optimizer"].update(step(params, next(take)), state)
        params = optax.apply_updates(params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), straight.params, params)
    assert straight.evaluation["loss"] < 0.5 and straight.evaluation["points"] == 16
    rows = [row for row in read_metrics(whole.out) if "heldout_loss" in row]
    assert [row["step"] for row in rows] == [30, 60]
    assert rows[-1]["heldout_bias"] == straight.evaluation["bias"]


def run(tmp_path, task=TASK, name="run", views=(), start=None, **config):
    config = RunConfig(**dict(steps=4, progress=False, save_every=2, out=str(tmp_path / name)) | config)
    options = dict(optimizer=optax.sgd(0.1), devices=jax.devices()[:1])
    return train(task, config, views=views, start=start, **options)


def test_starts_are_tried_in_order_and_said(tmp_path, capsys):
    given = {"w": np.ones(3), "b": np.ones(())}
    run(tmp_path, stop_after=2)
    tuned = run(tmp_path, name="tuned", start=given, steps=1)
    restored = run(tmp_path, name="restored", restore=str(tmp_path / "run"), start=given)
    resumed = run(tmp_path, restore=str(tmp_path / "tuned"), start=given)
    err = capsys.readouterr().err
    assert re.findall("^stopped.*", err, re.M) == [
        "stopped after step 2 of 4, as stop_after=2 says; the same command goes on"
    ]
    said = re.findall("^(?:start|fine|rest|resum).*", err, re.M)
    assert [line.split()[0] for line in said] == ["starting", "fine-tuning", "restoring", "resuming"]
    jax.tree.map(np.testing.assert_array_equal, restored.params, resumed.params)
    gradient = jax.grad(lambda p: loss(p, next(batches()), None)[0])(jax.tree.map(jnp.float32, given))
    want = jax.tree.map(lambda p, g: p - 0.1 * g, given, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), tuned.params, want)
    at_two = run(tmp_path, name="two", restore=str(tmp_path / "run" / "checkpoints" / "2"))
    jax.tree.map(np.testing.assert_array_equal, at_two.params, resumed.params)


def test_what_is_given_stays_the_users(tmp_path):
    """A step takes the memory of its state, and must not take that of arrays that came from outside."""
    start = jax.device_put({"w": jnp.ones(3), "b": jnp.ones(())}, jax.devices()[0])
    frozen = jax.device_put({"w": jnp.ones(3)}, jax.devices()[0])
    task = dataclasses.replace(TASK, frozen=frozen, frozen_axes={"w": ("embed",)})
    once, again = (run(tmp_path, task, name, start=start).params for name in ("once", "again"))
    jax.tree.map(np.testing.assert_array_equal, once, again)
    np.testing.assert_array_equal(start["w"] + frozen["w"], 2)


def test_axes_of_nothing_frozen_are_refused(tmp_path):
    with pytest.raises(UserError, match="frozen_axes= names axes of frozen=, and there is none"):
        run(tmp_path, dataclasses.replace(TASK, frozen_axes={"w": ("embed",)}))


def test_chosen_steps_are_kept(tmp_path):
    run(tmp_path, steps=20, keep_steps=(1, 2, 4, 8), keep_last=1, keep_best=0, save_every=5)
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [1, 2, 4, 8, 20]


def test_views_see_frozen_parameters_compose_and_draw_once_a_step(tmp_path):
    """w = base + scale * w, b with noise in training alone; gradients by hand in float64."""
    base = {"w": np.array([0.5, 0.5, 0.5], np.float32)}

    def on_base(params, frozen, key):
        return params | {"w": frozen["w"] + 2 * params["w"]}

    def noisy(params, frozen, key):
        return params if key is None else params | {"b": params["b"] + jax.random.normal(key)}

    task = dataclasses.replace(TASK, frozen=base, frozen_axes={"w": ("embed",)})
    trained = run(tmp_path, task, views=(on_base, noisy), steps=1)
    state_key = jax.random.split(jax.random.key(0))[1]
    step_key = jax.random.fold_in(state_key, 0)
    noise = float(jax.random.normal(jax.random.fold_in(jax.random.fold_in(step_key, 2**32 - 1), 1)))
    # A model's layers fold numbers into the step's key: with a view's they would draw the same.
    assert noise not in [float(jax.random.normal(jax.random.fold_in(step_key, n))) for n in range(8)]
    batch = next(batches())
    x, error = batch["x"].astype(float), batch["x"] @ base["w"].astype(float) + noise - batch["y"]
    want = -0.1 * 2 * 2 * np.mean(error[:, None] * x, axis=0)
    np.testing.assert_allclose(trained.params["w"], want, rtol=1e-5)
    np.testing.assert_allclose(trained.params["b"], -0.1 * 2 * np.mean(error), rtol=1e-5)
    held = next(batches(seed=1))
    viewed = held["x"] @ (base["w"] + 2 * trained.params["w"]) + trained.params["b"] - held["y"]
    assert trained.evaluation["loss"] == pytest.approx(float(np.mean(viewed**2)), rel=1e-5)
    # Not in the checkpoint, but remembered.
    kept = json.loads(Path(tmp_path, "run/checkpoints/1/checksums/metadata").read_text())
    assert not any("frozen" in name for name in kept["arrays"]) and "params/w: float32[3]" in kept["arrays"]
    other = dataclasses.replace(task, frozen={"w": base["w"] + 1})
    with pytest.raises(UserError, match="other frozen parameters.*'w: float32"):
        run(tmp_path, other, views=(on_base, noisy), steps=2)
    assert run(tmp_path, task, views=(on_base, noisy), steps=2).steps == 1


def short():
    yield from (batch for batch, _ in zip(batches(), range(2), strict=False))


@pytest.mark.parametrize(
    "change, options, said",
    [
        (dict(batches=lambda: iter(())), {}, "the task has no batches"),
        (dict(batches=lambda: None), {}, "returned None"),
        (dict(batches=None), {}, "the task's batches are None"),
        (dict(batches=short), {}, "ended before step 3; let them go on without end, or lower steps"),
        ({}, dict(start={"w": np.ones(3)}), r"no 'b', and the run's 'b' of shape \(\)"),
        ({}, dict(start={"w": np.ones(4), "b": np.ones(())}), r"'w' of shape \(4,\), and the run's 'w' of"),
        ({}, dict(views=(lambda params, frozen, key: {"w": params["w"]},)), r"a view changed .* \(b\)"),
        (dict(loss=lambda params, batch, key: jnp.float32(1)), {}, "must return"),
        ({}, dict(restore="nowhere"), "no checkpoint to restore in 'nowhere'"),
        (dict(batches=lambda: iter([{"y": np.float32(1)}])), {}, "needs an axis of rows"),
        (
            dict(axes={"w": ("embed",)}),
            {},
            r"^axes= has nothing for 'b', an array of shape \(\); give a tuple of 0",
        ),
        (dict(axes=None), {}, "^axes= has nothing for 'b'"),
        (dict(axes=AXES | {"w": ("a", "b")}), {}, r"has \('a', 'b'\) for 'w', an array of shape \(3,\)"),
        (dict(axes=AXES | {"w": ["a"]}), {}, r"has \['a'\] for 'w'"),
        (dict(axes=AXES | {"w": "a"}), {}, "has 'a' for 'w'"),
        (dict(axes=AXES | {"c": ("a",)}), {}, "names axes of 'c', and there is no such array"),
        (dict(frozen={"f": np.ones(2)}), {}, r"^frozen_axes= has nothing for 'f', an array of shape \(2,\)"),
    ],
)
def test_what_is_no_task_is_refused_in_a_sentence(tmp_path, change, options, said):
    with pytest.raises(UserError, match=said):
        run(tmp_path, dataclasses.replace(TASK, **change), **options)


def test_a_function_of_the_task_that_fails_loses_no_step(tmp_path):
    """The state is saved on the way out; the evaluation is made up for, and ranks its checkpoint."""

    def task(evaluate, **change):
        return dataclasses.replace(TASK, evaluate=evaluate, **change)

    def growing(params, mean_loss):  # b grows: step 3 is better than 6
        return {"loss": params["b"], "half": np.float32(0.5)}

    config = dict(steps=6, save_every=10, eval_every=3, keep_last=1, keep_best=1)
    whole = run(tmp_path, task(growing), name="whole", **config)
    kept = Checkpoints(tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match="evaluate= must return a dict of numbers by name.* returned None"):
        run(tmp_path, task(lambda params, mean_loss: None), **config)
    assert kept.steps() == [3]
    five = lambda: (batch for batch, _ in zip(batches(), range(5), strict=False))  # noqa: E731
    with pytest.raises(UserError, match="batches ended before step 6"):
        run(tmp_path, task(growing, batches=five), **config)
    assert kept.steps() == [3, 5]
    with pytest.raises(UserError, match="batches end after 2, and the checkpoint has taken 5"):
        run(tmp_path, task(growing, batches=short), **config)
    resumed = run(tmp_path, task(growing), **config)
    assert resumed.steps == 1 and resumed.evaluation == whole.evaluation
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    rows, want = (
        [row for row in read_metrics(tmp_path / name) if "heldout_loss" in row] for name in ("run", "whole")
    )
    assert rows == want and [row["step"] for row in rows] == [3, 6]
    kept = Checkpoints(tmp_path / "run" / "checkpoints")
    assert kept.steps() == [3, 6] and kept.best() == 3
    assert Checkpoints(tmp_path / "whole" / "checkpoints").steps() == [3, 6]  # saved for being the best


def test_an_error_of_the_batches_is_no_damage_of_a_checkpoint(tmp_path):
    """Whether they cannot be drawn again, or another check fails; the files are left as they are."""
    run(tmp_path, steps=6, stop_after=4)
    kept = Checkpoints(tmp_path / "run" / "checkpoints")

    def away():
        yield from (batch for batch, _ in zip(batches(), range(3), strict=False))
        raise ConnectionError("the data server is away")

    with pytest.raises(ConnectionError, match="the data server is away"):
        run(tmp_path, dataclasses.replace(TASK, batches=away), steps=6)
    assert sorted(path.name for path in kept.folder.iterdir()) == ["2", "4"]
    assert run(tmp_path, steps=6).steps == 2


@dataclasses.dataclass(frozen=True)
class OtherRun(RunConfig):
    """A kind of its own, with no field that tells."""

    _free = RunConfig._free


def test_a_run_of_another_kind_does_not_go_on_from_what_would_fit_it(tmp_path):
    run(tmp_path, steps=2)
    config = OtherRun(steps=3, progress=False, out=str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"holds a run of another kind \(RunConfig, this is OtherRun\)"):
        train(TASK, config, optimizer=optax.sgd(0.1), devices=jax.devices()[:1])
    assert run(tmp_path, steps=3).steps == 1


class Followed(Iterator):
    """Batches drawn from the parameters that the loop shows."""

    def __init__(self):
        self.taken, self.params = 0, None

    def follow(self, params):
        self.params = jax.device_get(params)

    def __next__(self):
        x = next(batches(self.taken))["x"]
        y = x @ (self.params["w"] + 1)
        self.taken, self.params = self.taken + 1, None
        return {"x": x, "y": y}

    def state(self):
        return {"step": self.taken}

    def restore(self, state):
        self.taken = state["step"]


def test_the_state_before_a_bad_update_is_made_again_from_batches_that_follow_it(tmp_path):
    rates = lambda step: jnp.where(step == 3, jnp.inf, 0.1)  # noqa: E731
    options = dict(optimizer=optax.sgd(rates), devices=jax.devices()[:1])
    shapes = jax.eval_shape(lambda: {"x": jnp.zeros((16, 3)), "y": jnp.zeros(16)})
    task = dataclasses.replace(TASK, batches=Followed, evaluate=None, batch_shapes=shapes)
    config = RunConfig(steps=5, progress=False, save_every=2, out=str(tmp_path / "run"))
    with pytest.raises(NonFiniteLoss, match="the update was not finite at step 4"):
        train(task, config, **options)
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [2, 3]
    whole = train(task, dataclasses.replace(config, steps=3, out=str(tmp_path / "whole")), **options)
    again = train(task, dataclasses.replace(config, steps=3), **options)
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)


@pytest.mark.parametrize("returned", [None, {"loss": "low"}, 0.5, {"loss": np.ones(2)}, {"loss": None}])
def test_an_evaluation_that_is_no_dict_of_numbers_is_refused_in_a_sentence(returned):
    with pytest.raises(UserError, match="evaluate= must return a dict of numbers by name"):
        check_evaluation(returned)


def test_axes_are_built_of_the_same_containers_as_their_arrays():
    two = [np.ones(2), np.ones(3)]
    check_axes("axes", [("a",), ("any name",)], two)
    with pytest.raises(UserError, match="^axes= is built of other containers"):
        check_axes("axes", (("a",), ("b",)), two)


def test_a_loss_that_is_not_a_number_is_told_with_an_advice_for_any_optimizer(tmp_path):
    broken = dataclasses.replace(TASK, loss=lambda p, b, key: (jnp.nan * p["b"], {"token_count": 1}))
    said = r"at step 1 .*lower the learning rate, lengthen its warmup \(in a TrainConfig: optim.learning"
    with pytest.raises(NonFiniteLoss, match=said):
        run(tmp_path, broken)
