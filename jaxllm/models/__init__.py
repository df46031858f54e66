"""Models of published families: a frozen config and pure functions over a dict of arrays.

Start with `get_preset`, `init` and `apply`; `trunk` and `logits` are the two halves of `apply`, `loss`
never makes full logits, `capture` and `Sites` read and edit activations, `decode` is the step that
`jaxllm.generate` takes.

Examples:
  >>> import jax, jax.numpy as jnp
  >>> from jaxllm import models
  >>> config = models.get_preset("gpt2-nano")  # sorted(models.PRESETS) names all; any field may be changed
  >>> params = models.init(config, jax.random.key(0))
  >>> models.apply(config, params, jnp.array([[1, 2, 3]])).shape
  (1, 3, 256)
  >>> loss, sums = models.loss(config, params, jnp.array([[1, 2]]), jnp.array([[2, 3]]))
  >>> models.axes(config)["layers"]["mlp"]["in"]  # the same tree as params, with the axes' names
  ('layers', 'embed', 'mlp')
"""

from jaxllm.models import hybrid as hybrid  # registers how a HybridConfig runs
from jaxllm.models import transformer as transformer  # registers how a ModelConfig runs
from jaxllm.models.architecture import cache_axes, capture, decode, init_cache, prefill, trunk
from jaxllm.models.cache import cache_rows, fork_cache, rewind_cache, select_rows
from jaxllm.models.config import LanguageModel, ModelConfig, check_decodes, check_length, check_transformer
from jaxllm.models.context_cache import context_cache
from jaxllm.models.decoding_layout import empty_cache, for_decoding
from jaxllm.models.encoder_decoder import Context, EncoderDecoderConfig, encode
from jaxllm.models.grouped_head import draw_token
from jaxllm.models.head import apply, logits
from jaxllm.models.hybrid_config import HybridConfig
from jaxllm.models.hybrid_parts import component, mixture, pretrained_hybrid, pruned, with_mixture
from jaxllm.models.ids import check_ids
from jaxllm.models.layer_view import LayerView
from jaxllm.models.layers_apart import is_apart, layers_apart
from jaxllm.models.loss import hidden_loss, loss, token_log_probs
from jaxllm.models.low_rank import LowRank
from jaxllm.models.mamba import MambaConfig
from jaxllm.models.parameters import axes, check_params, init, shapes
from jaxllm.models.pooling import mean_pool
from jaxllm.models.presets import PRESETS, get_preset
from jaxllm.models.sites import SITES, Sites
from jaxllm.models.striped import MAMBAFORMER, StripedConfig
from jaxllm.models.vocab_groups import VocabGroups

__all__ = [
    "MAMBAFORMER",
    "PRESETS",
    "SITES",
    "Context",
    "EncoderDecoderConfig",
    "HybridConfig",
    "LanguageModel",
    "LayerView",
    "LowRank",
    "MambaConfig",
    "ModelConfig",
    "Sites",
    "StripedConfig",
    "VocabGroups",
    "apply",
    "axes",
    "cache_axes",
    "cache_rows",
    "capture",
    "check_decodes",
    "check_ids",
    "check_length",
    "check_params",
    "check_transformer",
    "component",
    "context_cache",
    "decode",
    "draw_token",
    "empty_cache",
    "encode",
    "for_decoding",
    "fork_cache",
    "get_preset",
    "hidden_loss",
    "init",
    "init_cache",
    "is_apart",
    "layers_apart",
    "logits",
    "loss",
    "mean_pool",
    "mixture",
    "prefill",
    "pretrained_hybrid",
    "pruned",
    "rewind_cache",
    "select_rows",
    "shapes",
    "token_log_probs",
    "trunk",
    "with_mixture",
]
