"""A small GPT that reads labelled vectors and says the label of one more: TART's reasoning module.

Trained once, on synthetic problems (`problems`), it classifies embeddings of any frozen model (`classifier`).
A sequence is x_1, y_1, ..., x_k, y_k, x: two tokens a pair, and the logit of y = 1 after each x. Each token
is a vector that an affine map puts into an ordinary decoder of `jaxllm.models`, whose vocabulary is one
token: the label 1.

Suffixes: B sequences, K pairs, F features, T tokens, D width.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from jaxllm import models
from jaxllm.axis_names import AxisNames
from jaxllm.config import Config, Positive, Size
from jaxllm.errors import UserError
from jaxllm.models.config import Layers

_FEW_LAYERS = 8  # which compile fast one by one


@dataclass(frozen=True)
class ReasonerConfig(Config):
    """The sizes of a module. The defaults are those of the one that is shipped.

    Examples:
      >>> ReasonerConfig().num_params
      201280
      >>> ReasonerConfig(label_tokens="alone", position="learned", max_pairs=257, num_layers=12,
      ...                embed_dim=256, num_heads=8).num_params  # the paper's
      9614080
    """

    features: Size = 16
    max_pairs: Size = 128  # labelled pairs that it may read; it is trained on no more
    # What a label's token says: "pair", its vector and -1 or 1, so that one layer can compare vectors and
    # fetch labels; "alone", as in the paper, 0 or 1, so that a layer must find the vector before it first.
    label_tokens: Literal["pair", "alone"] = "pair"
    position: Literal["learned", "none"] = "none"  # none: a pair is known by its tokens, not by its place
    num_layers: Layers = 4
    embed_dim: Size = 64
    num_heads: Size = 4
    init_std: Positive = 0.125  # embed_dim ** -0.5; GPT-2's and the paper's 0.02 stands still for longer

    def __post_init__(self):
        super().__post_init__()
        if self.label_tokens == "alone" and self.position == "none":
            raise UserError(
                "label_tokens='alone' needs position='learned': without places nothing says whose label it is"
            )
        _ = self.decoder  # its sizes are checked now

    @property
    def decoder(self) -> models.ModelConfig:
        """The decoder that reads the tokens."""
        return models.ModelConfig(
            vocab_size=1, context_length=2 * self.max_pairs + 1, num_layers=self.num_layers,
            embed_dim=self.embed_dim, num_heads=self.num_heads, position=self.position,
            init_std=self.init_std,
        )  # fmt: skip

    @property
    def inputs(self) -> int:
        """How many numbers a token has: features, and beside them a label where it says both."""
        return self.features + (self.label_tokens == "pair")

    @property
    def num_params(self) -> int:
        """Count every number."""
        return self.decoder.num_params + (self.inputs + 1) * self.embed_dim


def init(config: ReasonerConfig, key: jax.Array) -> dict:
    """Draw a module's parameters: {"read_in": an affine map, "decoder": as `models.init`}."""
    keys = jax.random.split(key)
    kernel = jax.random.normal(keys[0], (config.inputs, config.embed_dim), jnp.float32)
    return {
        "read_in": {
            "kernel": kernel * config.inputs**-0.5,
            "bias": jnp.zeros(config.embed_dim, jnp.float32),
        },
        "decoder": models.init(config.decoder, keys[1]),
    }


def axes(config: ReasonerConfig) -> dict:
    """Return the names of the parameters' axes."""
    kernel = AxisNames(("features", "embed"), ("features",))
    return {"read_in": {"kernel": kernel, "bias": ("embed",)}, "decoder": models.axes(config.decoder)}


def logits(config: ReasonerConfig, params: dict, x_BKF: jax.Array, y_BK: jax.Array) -> jax.Array:
    """Return the logit of y = 1 after each x, float32 [B, K]: it sees the pairs before, and not its own y.

    Args:
      x_BKF: vectors, of which the last one's label is read by nothing.
      y_BK: labels, 0 or 1.

    Examples:
      >>> config = ReasonerConfig(features=2, max_pairs=3, num_layers=1, embed_dim=8, num_heads=2)
      >>> params = init(config, jax.random.key(0))
      >>> logits(config, params, jnp.ones((5, 4, 2)), jnp.zeros((5, 4))).shape
      (5, 4)
    """
    check_pairs(config, x_BKF.shape[1] - 1)
    tokens_BTD = pair_tokens(config, params, x_BKF, y_BK)[:, :-1]
    weights = params["decoder"]
    if config.num_layers <= _FEW_LAYERS:  # a scan would cost small layers a quarter more
        weights = models.layers_apart(weights)
    hidden_BTD = models.trunk(config.decoder, weights, tokens_BTD)
    return models.logits(config.decoder, weights, hidden_BTD[:, ::2])[..., 0]


def check_pairs(config: ReasonerConfig, pairs: int) -> None:
    """Check that a module was trained on so many labelled pairs.

    Raises:
      UserError: it was trained on fewer.
    """
    if pairs > config.max_pairs:
        raise UserError(
            f"{pairs} labelled pairs, and the module was trained on {config.max_pairs} at most; give fewer, "
            "or train one with a larger max_pairs"
        )


def pair_tokens(config: ReasonerConfig, params: dict, x_BKF: jax.Array, y_BK: jax.Array) -> jax.Array:
    """Return x_1, y_1, x_2, y_2 ... as the decoder takes them: [B, 2K, D]."""
    x_BKF = x_BKF.astype(jnp.float32)
    y_BK1 = y_BK[..., None].astype(jnp.float32)
    if config.label_tokens == "pair":
        label_BKI = jnp.concatenate([x_BKF, 2 * y_BK1 - 1], axis=2)
    else:
        label_BKI = jnp.pad(y_BK1, ((0, 0), (0, 0), (0, config.inputs - 1)))
    both_BK2I = jnp.stack([_widened(config, x_BKF), label_BKI], axis=2)
    return _read_in(params, both_BK2I.reshape(len(x_BKF), -1, config.inputs))


def query_tokens(config: ReasonerConfig, params: dict, x_NF: jax.Array) -> jax.Array:
    """Return vectors whose labels are to be said as the decoder takes them: [N, 1, D]."""
    return _read_in(params, _widened(config, x_NF.astype(jnp.float32)))[:, None]


def _widened(config, x):
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, config.inputs - x.shape[-1])])


def _read_in(params, tokens):
    return tokens @ params["read_in"]["kernel"] + params["read_in"]["bias"]
