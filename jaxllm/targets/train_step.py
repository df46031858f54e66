"""Forecasts of what jaxllm itself runs: a training step, a step of decoding."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from jaxllm import models, parallel
from jaxllm.data.tokenizer import is_trained, load_tokenizer
from jaxllm.errors import UserError
from jaxllm.subnetwork import Schedule
from jaxllm.targets.catalog import Target, get_target
from jaxllm.targets.compiled import compile
from jaxllm.targets.compiled import mesh as make_mesh
from jaxllm.targets.forecast import Forecast
from jaxllm.targets.topology import devices
from jaxllm.targets.trained import model_flops
from jaxllm.text import prepare_shapes
from jaxllm.text.config import TrainConfig
from jaxllm.train import LossFunction, View
from jaxllm.vocabulary import parse_groups


def compile_train_step(
    config: TrainConfig,
    target: Target | str,
    *,
    loss: LossFunction | None = None,
    optimizer: optax.GradientTransformation | None = None,
    subnetworks: Schedule | None = None,
    views: Sequence[View] = (),
) -> Forecast:
    """Compile the step that `jaxllm.text.train(config)` runs and forecast it.

    It is the same function with the same shardings, donation, precision, rematerialisation and
    accumulation. No data is read: the vocabulary is the model's, or what the tokenizer's name says.

    Args:
      config: the run.
      target: the machine, or its name.
      loss: see `jaxllm.text.train`; so are the rest.
      optimizer: instead of the one that `config.optim` describes.
      subnetworks: instead of those that `config.subnetwork` names.
      views: of the parameters, applied before the loss.

    Raises:
      UserError: mesh, batch and target do not fit together, or the target's compiler is missing.
    """
    target = get_target(target)
    job = prepare_shapes(
        with_vocabulary(config), loss=loss, optimizer=optimizer, subnetworks=subnetworks, views=views,
        devices=devices(target),
    )  # fmt: skip
    flops = model_flops(job.config) / target.num_devices
    return compile(job.train_step, (job.shapes, job.batch_shapes), target, model_flops=flops)


def compile_decode_step(
    config: models.LanguageModel,
    batch_size: int,
    length: int,
    target: Target | str,
    mesh: parallel.MeshConfig = parallel.MeshConfig(data=1, tensor=-1),
) -> Forecast:
    """Compile one step of cached decoding, a new token for each row, and forecast it.

    Args:
      config: the model.
      batch_size: rows.
      length: slots of the cache.
      target: the machine, or its name.
      mesh: how the devices are split; by default over heads, mlp and vocabulary.
    """
    target = get_target(target)
    config = dataclasses.replace(config, param_dtype=config.dtype)  # cast once, before the first token
    place = make_mesh(mesh, target)
    shapes = jax.eval_shape(lambda: models.init(config, jax.random.key(0)))
    params = _sharded(shapes, parallel.shardings(models.axes(config), shapes, place))
    cache = jax.eval_shape(lambda: models.init_cache(config, batch_size, length))
    cache = _sharded(cache, parallel.shardings(models.cache_axes(config), cache, place))
    tokens = jax.ShapeDtypeStruct((batch_size, 1), jnp.int32)
    tokens = _sharded(tokens, parallel.shardings(("batch", None), tokens, place))

    def decode_step(params, cache, tokens):
        with jax.sharding.use_abstract_mesh(place.abstract_mesh):
            hidden_B1D, cache = models.decode(config, params, tokens, cache)
            return models.logits(config, params, hidden_B1D[:, 0]), cache

    step = jax.jit(decode_step, donate_argnums=1)
    flops = config.flops_per_token(length) / 3 * batch_size / target.num_devices  # forward alone
    return compile(step, (params, cache, tokens), target, model_flops=flops)


def with_vocabulary(config: TrainConfig) -> TrainConfig:
    """Return the run with its vocabulary's size filled in from the tokenizer's name.

    Groups are of ids in their order: which token is in which group changes no shape.

    Raises:
      UserError: the tokenizer is one whose size only its data tells.
    """
    size, groups = config.model.vocab_size, config.model.vocab_groups
    if size is None:
        size = _vocab_size(config.tokenizer)
    if config.vocab_groups is not None:
        groups = models.VocabGroups.of(range(size), parse_groups(config.vocab_groups)[1])
    model = dataclasses.replace(config.model, vocab_size=size, vocab_groups=groups)
    return dataclasses.replace(config, model=model)


def _vocab_size(name: str) -> int:
    if name.startswith("bpe:") and name[4:].isdecimal():
        return int(name[4:])
    if is_trained(name):
        raise UserError(
            f"the size of the tokenizer '{name}' depends on its text, which a forecast does not read; "
            "set model.vocab_size"
        )
    return load_tokenizer(name).vocab_size


def _sharded(shapes, shardings):
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)

