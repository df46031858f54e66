"""Models of published families: a frozen config and pure functions over a dict of arrays.

Examples:
  >>> import jax, jax.numpy as jnp
  >>> from jaxllm import models
  >>> config = models.get_preset("gpt2-nano")
  >>> params = models.init(config, jax.random.key(0))
  >>> models.apply(config, params, jnp.array([[1, 2, 3]])).shape
  (1, 3, 256)
"""

from jaxllm.models import transformer as transformer  # registers how a ModelConfig runs
from jaxllm.models.architecture import cache_axes as cache_axes
from jaxllm.models.architecture import capture as capture
from jaxllm.models.architecture import decode as decode
from jaxllm.models.architecture import init_cache as init_cache
from jaxllm.models.architecture import trunk as trunk
from jaxllm.models.cache import cache_rows as cache_rows
from jaxllm.models.cache import fork_cache as fork_cache
from jaxllm.models.cache import select_rows as select_rows
from jaxllm.models.config import LanguageModel as LanguageModel
from jaxllm.models.config import ModelConfig as ModelConfig
from jaxllm.models.config import check_decodes as check_decodes
from jaxllm.models.config import check_transformer as check_transformer
from jaxllm.models.decoding_layout import empty_cache as empty_cache
from jaxllm.models.decoding_layout import for_decoding as for_decoding
from jaxllm.models.encoder_decoder import Context as Context
from jaxllm.models.encoder_decoder import EncoderDecoderConfig as EncoderDecoderConfig
from jaxllm.models.encoder_decoder import context_cache as context_cache
from jaxllm.models.encoder_decoder import encode as encode
from jaxllm.models.grouped_head import draw_token as draw_token
from jaxllm.models.head import apply as apply
from jaxllm.models.head import logits as logits
from jaxllm.models.ids import check_ids as check_ids
from jaxllm.models.layer_view import LayerView as LayerView
from jaxllm.models.layers_apart import is_apart as is_apart
from jaxllm.models.layers_apart import layers_apart as layers_apart
from jaxllm.models.loss import hidden_loss as hidden_loss
from jaxllm.models.loss import loss as loss
from jaxllm.models.loss import token_log_probs as token_log_probs
from jaxllm.models.low_rank import LowRank as LowRank
from jaxllm.models.mamba import MambaConfig as MambaConfig
from jaxllm.models.parameters import axes as axes
from jaxllm.models.parameters import check_params as check_params
from jaxllm.models.parameters import init as init
from jaxllm.models.parameters import shapes as shapes
from jaxllm.models.pooling import first_pool as first_pool
from jaxllm.models.pooling import mean_pool as mean_pool
from jaxllm.models.presets import PRESETS as PRESETS
from jaxllm.models.presets import get_preset as get_preset
from jaxllm.models.sites import SITES as SITES
from jaxllm.models.sites import Sites as Sites
from jaxllm.models.vocab_groups import VocabGroups as VocabGroups
