"""The engine "tiles": a training step as tile tasks, behind the loop's own interface."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxllm.errors import UserError
from jaxllm.text.config import TrainConfig
from jaxllm.tiles.gpt2 import StepOptions
from jaxllm.tiles.trainer import TiledTrainer
from jaxllm.train.engine import Engine, Parts, Step
from jaxllm.train.state import TrainState


def tiled_engine(config: TrainConfig, plain: bool) -> Engine:
    """Return the engine whose step runs as tile tasks.

    The state that its step returns stays in tiles; what reads one of its fields gathers that field into the
    ordinary arrays. So checkpoints are the same as the other engine's, and either resumes them.

    Args:
      config: the run.
      plain: the loss is the next token's, of the whole model, and the optimizer the config's.

    Raises:
      UserError: something that tiles do not compute.
    """
    asked = {
        "optim.name": (config.optim.name, "adamw"),
        "precision": (config.precision, "float32"),
        "z_loss": (config.z_loss, 0.0),
        "a loss, optimizer or subnetworks of your own": (not plain, False),
        "processes": (jax.process_count(), 1),
    }
    for name, (value, only) in asked.items():
        if value != only:
            raise UserError(f"engine 'tiles' takes {name}={only} and not {value}; use that, or engine 'jit'")
    return partial(_tiled_step, config)


def _tiled_step(config: TrainConfig, parts: Parts) -> Step:
    shapes, optim = parts.shapes, config.optim
    options = StepOptions(
        accumulate=config.accumulate, b1=optim.beta1, b2=optim.beta2, eps=optim.eps,
        weight_decay=optim.weight_decay, clip_norm=optim.clip_norm,
    )  # fmt: skip
    devices = list(parts.mesh.devices.flat)
    trainer = TiledTrainer(config.model, config.tiles, config.batch_size, config.seq_len, options, devices)
    rates = np.asarray(jax.vmap(optim.make_schedule(config.steps))(np.arange(config.steps)))

    def step(state: TrainState, batch: dict[str, Any]):
        if not isinstance(state, TiledState):
            moments = [optax.tree_utils.tree_get(state.opt_state, name) for name in ("mu", "nu")]
            trainer.load(state.params, moments, int(state.step))
            state = TiledState(trainer, state.key, shapes)
        batch = {name: np.asarray(value) for name, value in batch.items()}
        if not config.isolate_documents:
            del batch["segment_ids"]
        metrics = trainer.step(batch, rates[trainer.step_number])
        return TiledState(trainer, state.key, shapes), metrics | {"sound": True}  # tried before it is written

    return step


class TiledState(TrainState):
    """A TrainState whose arrays are gathered from the trainer's tiles when they are read.

    It is the trainer's newest state whenever that is, as a donated state is only valid until the next step.
    """

    def __init__(self, trainer: TiledTrainer, key: jax.Array, shapes: TrainState):
        for name, value in dict(_trainer=trainer, _key=key, _shapes=shapes).items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return repr(self._shapes)  # the arrays would be gathered

    @property
    def step(self):
        return self._place(jnp.asarray(self._trainer.verdict()[1], jnp.int32), self._shapes.step)

    @property
    def params(self):
        return self._place(self._trainer.params(), self._shapes.params)

    @property
    def opt_state(self):
        mu, nu = self._trainer.moments()
        changed = optax.tree_utils.tree_set(
            jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), self._shapes.opt_state),
            mu=mu, nu=nu, count=np.asarray(self._trainer.verdict()[1], np.int32),
        )  # fmt: skip
        return self._place(changed, self._shapes.opt_state)

    @property
    def key(self):
        return self._key

    @property
    def failed(self):
        return self._place(jnp.asarray(self._trainer.verdict()[0]), self._shapes.failed)

    def _place(self, values, shapes):
        return jax.device_put(values, jax.tree.map(lambda x: x.sharding, shapes))
