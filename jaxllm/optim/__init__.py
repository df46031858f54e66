"""Gradient transformations, each an ordinary link of `optax.chain`, and the optimizer of a run.

Start with the links, for any model that optax trains: `stochastic_round` or `kahan_compensate` last, where
weights are bfloat16; `scale_by_adam_low_precision`; `with_master_weights(inner)`; `rotate(inner, axes)`,
`orthoadam`, and `orthoadam_bf16_sr` for bfloat16 weights; `mask_unsampled`. `check_chain(state)` names a link
in the wrong place.

    optimizer = optax.chain(scale_by_adam_low_precision(), optax.scale(-3e-4), stochastic_round(seed=0))

`adamw_bf16_sr` is both and weight decay in one fused loop. A run's own is `OptimConfig(name="lion")`, which
`make_optimizer` builds.
"""

from jaxllm.optim.check_chain import check_chain
from jaxllm.optim.config import OptimConfig, make_optimizer
from jaxllm.optim.decay import decay_mask
from jaxllm.optim.float32_gradients import float32_gradients
from jaxllm.optim.kahan import kahan_compensate
from jaxllm.optim.low_precision_adam import adamw_bf16_sr, scale_by_adam_low_precision
from jaxllm.optim.mask_unsampled import mask_unsampled
from jaxllm.optim.master_weights import with_master_weights
from jaxllm.optim.mixture import exponentiated_gradient, search_mixture
from jaxllm.optim.rotate import (
    RotationCost,
    orthoadam,
    orthoadam_bf16_sr,
    rotate,
    rotation_cost,
    scale_by_ortho_adam,
)
from jaxllm.optim.schedules import make_schedule
from jaxllm.optim.stochastic_round import apply_updates, stochastic_round

__all__ = [
    "OptimConfig",
    "RotationCost",
    "adamw_bf16_sr",
    "apply_updates",
    "check_chain",
    "decay_mask",
    "exponentiated_gradient",
    "float32_gradients",
    "kahan_compensate",
    "make_optimizer",
    "make_schedule",
    "mask_unsampled",
    "orthoadam",
    "orthoadam_bf16_sr",
    "rotate",
    "rotation_cost",
    "scale_by_adam_low_precision",
    "scale_by_ortho_adam",
    "search_mixture",
    "stochastic_round",
    "with_master_weights",
]
