"""Gradient transformations, each an ordinary link of `optax.chain`, and the optimizer of a run."""

from jaxllm.optim.check_chain import check_chain as check_chain
from jaxllm.optim.config import OptimConfig as OptimConfig
from jaxllm.optim.config import make_optimizer as make_optimizer
from jaxllm.optim.decay import decay_mask as decay_mask
from jaxllm.optim.float32_gradients import float32_gradients as float32_gradients
from jaxllm.optim.kahan import kahan_compensate as kahan_compensate
from jaxllm.optim.low_precision_adam import adamw_bf16_sr as adamw_bf16_sr
from jaxllm.optim.low_precision_adam import scale_by_adam_low_precision as scale_by_adam_low_precision
from jaxllm.optim.mask_unsampled import mask_unsampled as mask_unsampled
from jaxllm.optim.master_weights import with_master_weights as with_master_weights
from jaxllm.optim.rotate import RotationCost as RotationCost
from jaxllm.optim.rotate import orthoadam as orthoadam
from jaxllm.optim.rotate import rotate as rotate
from jaxllm.optim.rotate import rotation_cost as rotation_cost
from jaxllm.optim.rotate import scale_by_ortho_adam as scale_by_ortho_adam
from jaxllm.optim.schedules import make_schedule as make_schedule
from jaxllm.optim.stochastic_round import apply_updates as apply_updates
from jaxllm.optim.stochastic_round import stochastic_round as stochastic_round
