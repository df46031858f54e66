"""The task that trains a module: synthetic problems; each label is predicted from the pairs before it."""

import functools
from dataclasses import dataclass

import jax
import numpy as np
import optax

from jaxllm.config import Count, Positive, UserPath
from jaxllm.in_context.problems import Curriculum, ProblemBatches, draw_problems
from jaxllm.in_context.reasoner import ReasonerConfig, axes, init, logits
from jaxllm.in_context.saved import Reasoner
from jaxllm.train import RunConfig, Task, Trained, prepare, train_run
from jaxllm.train.length import check_length

_HELD_OUT = 2**32 - 1  # a seed that no run draws its batches from


@dataclass(frozen=True)
class ReasonerRun(RunConfig):
    """A run that trains a module; the values of the one that is shipped."""

    module: ReasonerConfig = ReasonerConfig()
    problems: Curriculum = Curriculum(
        alphas=(0.25, 0.5, 1.0, 2.0, 5.0, 10.0), bias=0.5, first_features=4, more_features=4,
        feature_steps=150, first_pairs=32, more_pairs=96, pair_steps=6200, mixed=True, targets="chances",
    )  # fmt: skip
    steps: Count = 7000
    batch_size: Count = 64  # problems a step, over all devices
    learning_rate: Positive = 2e-3  # after a warmup of 100 steps; a cosine takes it to a fiftieth
    held_out: Count = 256  # problems that an evaluation is of
    eval_every: Count = 500
    save_every: Count = 1000
    log_every: Count = 50
    out: UserPath = "runs/reasoner"

    _free = RunConfig._free

    @property
    def work_per_step(self) -> tuple[int, str]:
        """What a step works through, for the log's speeds."""
        return self.batch_size, "problems"


def reasoner_task(config: ReasonerRun) -> Task:
    """Return the task of a module: what `jaxllm.train` takes.

    An evaluation is of problems that no run draws, with all features: the loss over all labels, and accuracy
    of the last one.
    """
    sizes = config.module

    def loss(params, batch, key):
        del key
        logits_BK = logits(sizes, params, batch["x"], batch["y"])
        losses_BK = optax.sigmoid_binary_cross_entropy(logits_BK, batch["target"])
        return losses_BK.mean(), {"token_count": losses_BK.size}

    def batches():
        return ProblemBatches(
            config.problems, rows=config.batch_size, pairs=sizes.max_pairs, features=sizes.features,
            seed=config.seed, process=(jax.process_index(), jax.process_count()),
        )  # fmt: skip

    shape = (sizes.max_pairs + 1, sizes.features)

    @functools.cache
    def held_out():
        draw, problems = np.random.default_rng(_HELD_OUT), config.problems
        return draw_problems(draw, config.held_out, *shape, alphas=problems.alphas, bias=problems.bias)

    last_logits = jax.jit(lambda params, x, y: logits(sizes, params, x, y)[:, -1])

    def evaluate(params, mean_loss):
        drawn, rows = held_out(), min(config.batch_size, config.held_out)
        parts = [slice(at, at + rows) for at in range(0, config.held_out - rows + 1, rows)]
        some = [{"x": drawn.x_BKF[part], "y": drawn.y_BK[part], "target": drawn.y_BK[part]} for part in parts]
        right = [(np.asarray(last_logits(params, one["x"], one["y"])) > 0) == one["y"][:, -1] for one in some]
        return {"loss": mean_loss(params, iter(some))[0], "accuracy": float(np.mean(right))}

    rows = config.batch_size
    float32 = jax.numpy.float32
    shapes = {name: jax.ShapeDtypeStruct((rows, shape[0]), float32) for name in ("y", "target")}
    shapes["x"] = jax.ShapeDtypeStruct((rows, *shape), float32)
    init_params = functools.partial(init, sizes)
    return Task(init_params, axes(sizes), batches, loss, evaluate, batch_shapes=shapes)


def reasoner_optimizer(config: ReasonerRun) -> optax.GradientTransformation:
    """Return Adam with its gradient clipped and its learning rate warmed up and let down."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(_schedule(config, config.steps)))


def _schedule(config: ReasonerRun, steps: int) -> optax.Schedule:
    warmup, rate = min(100, max(1, steps // 10)), config.learning_rate
    return optax.warmup_cosine_decay_schedule(0.0, rate, warmup, max(steps, warmup + 1), rate / 50)


def train_reasoner(config: ReasonerRun, start: Reasoner | None = None) -> tuple[Reasoner, Trained]:
    """Train a module, or go on where the checkpoints in `config.out` end; return (module, the run).

    Args:
      config: the run.
      start: a module to begin with; without learned positions one of fewer pairs will do.

    Raises:
      UserError: it goes on with other `steps`, and so with other learning rates.
      UserError, Interrupted, NonFiniteLoss: see `jaxllm.train.train`.
    """
    run = prepare(
        reasoner_task(config), config, optimizer=reasoner_optimizer(config),
        start=None if start is None else start.params,
        check=check_length(config, functools.partial(_schedule, config), "cosine"),
    )  # fmt: skip
    trained = train_run(run)
    return Reasoner(config.module, trained.params), trained
