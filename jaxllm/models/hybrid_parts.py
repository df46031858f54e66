"""A hybrid made of models, and models of a hybrid: imported parts, mixtures read and set, pruning, export."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.errors import UserError, brief
from jaxllm.models.architecture import declare
from jaxllm.models.config import LanguageModel
from jaxllm.models.hybrid_config import HybridConfig, without_table
from jaxllm.models.parameters import check_params, draw


def pretrained_hybrid(config: HybridConfig, parts: Sequence[dict], key: jax.Array) -> dict:
    """Return a hybrid's parameters around its parts', which are taken as they are; the rest is drawn.

    The mixture begins uniform. A part that has a new table of the vocabulary gives up its own and its head.

    Args:
      parts: each part's parameters, layers stacked.
      key: draws projectors and new tables.

    Raises:
      UserError: not as many as the config has parts, or parameters of another config.

    Examples:
      >>> from jaxllm import models
      >>> part = models.get_preset("gpt2-nano")
      >>> params = models.init(part, jax.random.key(0))
      >>> config = HybridConfig(parts=(part, part), blocks=2, tables="parts")
      >>> mixture(pretrained_hybrid(config, [params, params], jax.random.key(1))).tolist()
      [[0.5, 0.5], [0.5, 0.5]]
    """
    if len(parts) != len(config.parts):
        raise UserError(f"the hybrid has {len(config.parts)} parts and parameters of {len(parts)} are given")
    declared, trees = declare(config), {}
    for index, params in enumerate(parts):
        trees[str(index)] = without_table(params) if config.has_new_table(index) else params
    rest = {name: tree for name, tree in declared.items() if name != "parts"}
    params = draw(rest, config.param_dtype, key) | {"parts": trees}
    check_params(config, params)
    return params


def mixture(params: dict) -> np.ndarray:
    """Return the weights alpha of each block's parts, float64 [N, K].

    Raises:
      UserError: they are no numbers any more.
    """
    logits_NK = np.asarray(params["mixture"]["logits"], np.float64)
    if np.isnan(logits_NK).any():
        raise UserError(
            "the mixture's weights are NaN; search again with a smaller learning rate of the mixture"
        )
    alphas_NK = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
    return alphas_NK / alphas_NK.sum(axis=1, keepdims=True)


def with_mixture(params: dict, alphas: Any) -> dict:
    """Return a hybrid's parameters with other mixture weights; a weight of 0 has the logit -inf.

    The mean of mixtures that proxies found is one ("programming" in the paper).

    Args:
      alphas: [N, K], each row of sum 1; or [K], for all blocks.

    Raises:
      UserError: another shape, or a row that is no mixture.
    """
    logits = params["mixture"]["logits"]
    alphas_NK = np.asarray(alphas, np.float64)
    alphas_NK = np.broadcast_to(alphas_NK, logits.shape) if alphas_NK.ndim == 1 else alphas_NK
    if alphas_NK.shape != logits.shape:
        raise UserError(
            f"mixture weights are of shape {list(alphas_NK.shape)}; give one for each block and part, "
            f"{list(logits.shape)}"
        )
    if not (np.all(alphas_NK >= 0) and np.allclose(alphas_NK.sum(axis=1), 1, atol=1e-4)):
        raise UserError(
            f"mixture weights are {brief(alphas_NK.tolist())}; a block's must be at least 0, and sum to 1"
        )
    with np.errstate(divide="ignore"):
        new = jnp.asarray(np.log(alphas_NK), logits.dtype)
    return params | {"mixture": {"logits": new}}


def pruned(config: HybridConfig, params: dict, least: float) -> tuple[HybridConfig, dict]:
    """Return the hybrid without what hardly counts: its blocks run parts of weight `least` or more alone.

    The weights that stay are divided by their sum. A part that no block runs is left out altogether, as are
    projectors where no block mixes; but not part 0 of tables="first", nor, with projectors, the widest part.

    Args:
      least: at most 1 / K keeps a part in each block; the heaviest one always stays.
    """
    alphas_NK = mixture(params)
    running = []
    for block, names in enumerate(config.running):
        heaviest = max(names, key=lambda part: alphas_NK[block, part])  # noqa: B023
        running.append([part for part in names if alphas_NK[block, part] >= least or part == heaviest])
    projector = config.projector if any(len(names) > 1 for names in running) else "none"
    kept = {part for names in running for part in names}
    if config.tables == "first":
        kept.add(0)  # whose table says the vocabulary
    widths = [part.embed_dim for part in config.parts]
    if projector != "none" and all(widths[part] < config.embed_dim for part in kept):
        kept.add(widths.index(config.embed_dim))  # the common stream's, which the projectors are of
    kept = sorted(kept)
    place = {part: index for index, part in enumerate(kept)}
    config = dataclasses.replace(
        config,
        parts=tuple(config.parts[part] for part in kept),
        running=tuple(tuple(place[part] for part in names) for names in running),
        projector=projector,
    )
    logits = params["mixture"]["logits"][:, np.array(kept)]
    params = params | {"mixture": {"logits": logits}, "parts": _kept(params["parts"], place)}
    if "tables" in params:
        params["tables"] = _kept(params["tables"], place)
    if config.projector == "none":
        params.pop("projectors", None)
    if "projectors" in params:
        params["projectors"] = {block: _kept(own, place) for block, own in params["projectors"].items()}
    check_params(config, params)
    return config, params


def _kept(trees: dict, place: dict[int, int]) -> dict:
    return {str(place[int(name)]): tree for name, tree in trees.items() if int(name) in place}


def component(config: HybridConfig, params: dict, part: int) -> tuple[LanguageModel, dict]:
    """Return one part as a model of its own (config, params): what the hybrid is where that part runs alone.

    Raises:
      UserError: there is no such part.
    """
    if not 0 <= part < len(config.parts):
        raise UserError(f"part {part} is none of the hybrid's; choose one of 0 to {len(config.parts) - 1}")
    tree = params["parts"][str(part)]
    if config.has_new_table(part):
        tree = tree | {"embed": tree.get("embed", {}) | {"tokens": params["tables"][str(part)]}}
    return config.parts[part], tree
