"""GPT-2's training step as libraries commonly write it: the plain rival of the targets benchmark.

flax.linen modules, layers scanned and each rematerialised, jax.nn.dot_product_attention, the logits of
all tokens in memory, optax's integer cross-entropy and AdamW. Not anybody's published code: written
here, so that the comparison can always be made.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxllm.models import ModelConfig


class _Layer(nn.Module):
    config: ModelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BTD, _):
        c, shared = self.config, dict(dtype=self.dtype, param_dtype=jnp.float32)
        y = nn.LayerNorm(**shared)(x_BTD)
        query, key, value = (nn.DenseGeneral((c.num_heads, c.head_dim), **shared)(y) for _ in range(3))
        y = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        x_BTD = x_BTD + nn.DenseGeneral(c.embed_dim, axis=(-2, -1), **shared)(y)
        y = nn.Dense(c.mlp_dim, **shared)(nn.LayerNorm(**shared)(x_BTD))
        return x_BTD + nn.Dense(c.embed_dim, **shared)(nn.gelu(y)), None


class _Gpt2(nn.Module):
    config: ModelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, tokens_BT):
        c, shared = self.config, dict(dtype=self.dtype, param_dtype=jnp.float32)
        table = nn.Embed(c.vocab_size, c.embed_dim, **shared)
        positions = nn.Embed(c.context_length, c.embed_dim, **shared)
        x_BTD = table(tokens_BT) + positions(jnp.arange(tokens_BT.shape[1]))
        layers = nn.scan(
            nn.remat(_Layer, prevent_cse=False), variable_axes={"params": 0}, split_rngs={"params": True},
            length=c.num_layers,
        )  # fmt: skip
        x_BTD, _ = layers(c, self.dtype)(x_BTD, None)
        return table.attend(nn.LayerNorm(**shared)(x_BTD))


def reference_step(config: ModelConfig, batch_size: int, seq_len: int, dtype="bfloat16", sharding=None):
    """Return (jitted step(state, batch) that donates the state, the shapes of both).

    Args:
      config: GPT-2's sizes.
      batch_size: sequences.
      seq_len: tokens.
      dtype: of activations; parameters and moments are float32.
      sharding: of everything; None: the default device.
    """
    model = _Gpt2(config, jnp.dtype(dtype))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(6e-4, weight_decay=0.1))

    def init(key):
        params = model.init(key, jnp.zeros((1, seq_len), jnp.int32))
        return params, optimizer.init(params)

    def loss(params, tokens_BT, targets_BT):
        logits_BTV = model.apply(params, tokens_BT).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits_BTV, targets_BT).mean()

    def step(state, batch):
        params, opt_state = state
        value, grads = jax.value_and_grad(loss)(params, *batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    def placed(tree):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    tokens = jax.ShapeDtypeStruct((batch_size, seq_len), jnp.int32)
    shapes = placed(jax.eval_shape(init, jax.random.key(0))), placed((tokens, tokens))
    return jax.jit(step, donate_argnums=0), shapes
