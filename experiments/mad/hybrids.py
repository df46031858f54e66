"""Hybrids of MAD's parts: how their mixtures are given, read and rounded."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxllm.models import HybridConfig, LanguageModel, mixture, with_mixture


def hybrid(parts: Sequence[LanguageModel], blocks: int) -> HybridConfig:
    """Return the hybrid of parts of one width, without projectors, as the paper's proxies are.

    Its new tables begin as the parts' own would.
    """
    return HybridConfig(parts=tuple(parts), blocks=blocks, projector="none", init_std=parts[0].init_std)


def with_given(params: Any, alphas: np.ndarray) -> Any:
    """Return a solver's parameters with a given mixture, [blocks, parts]."""
    return _put(params, lambda hybrid: with_mixture(hybrid, alphas))


def mixture_of(params: Any) -> np.ndarray:
    """Return a solver's mixture, [blocks, parts]."""
    return mixture(params.get("model", params))


def rounded(params: Any) -> Any:
    """Return a solver's parameters with all of each block's weight on its heaviest part."""
    alphas_NK = mixture_of(params)
    return with_given(params, np.eye(alphas_NK.shape[1])[alphas_NK.argmax(axis=1)])


def _put(params, change):
    """Change the hybrid of a solver, whose parameters may hold a decoder beside it."""
    return params | {"model": change(params["model"])} if "model" in params else change(params)
