"""The language-model loss, and the log-probability of each token, without full logits."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxllm_kernels import linear_cross_entropy as kernel

from jaxllm.errors import UserError
from jaxllm.models import grouped_head
from jaxllm.models.architecture import trunk
from jaxllm.models.config import LanguageModel
from jaxllm.models.head import head_input, head_weights, logits
from jaxllm.models.ids import check_ids
from jaxllm.parallel import mesh_axes, on_shards, spread


def loss(
    config: LanguageModel,
    params: dict,
    tokens_BT: jax.Array,
    targets_BT: jax.Array,
    *,
    mask: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    token_types: jax.Array | None = None,
    z_loss: float = 0.0,
    microbatches: int = 1,
    key: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return (mean loss over the tokens that count, sums to log).

    Args:
      tokens_BT: int [B, T].
      targets_BT: int [B, T], the token after each; any value where the mask is 0. A negative one (-100)
        does not count either; one beyond the vocabulary that counts makes the mean NaN. For a head of labels
        the label of each token, or of each text [B].
      mask: bool or weights, as many as targets; None: every one counts.
      segment_ids, token_types: see `trunk`.
      z_loss: coefficient of logsumexp(logits)**2, added to each token's loss.
      microbatches, key: see `trunk`.

    Returns:
      The float32 mean of cross-entropy plus z-loss (0 if nothing counts), and {"loss_sum": summed
      cross-entropy without z-loss, "z_loss": summed z-loss term, "token_count": sum of the mask}. Of a
      head of groups also "group_loss_sum" and "slot_loss_sum", the two parts of loss_sum.

    Raises:
      UserError: a z_loss for a head of groups, which has no one logsumexp; ids that are fractions or,
        outside of jit, that the vocabulary does not have.

    Examples:
      >>> from jaxllm import models
      >>> config = models.get_preset("gpt2-nano")
      >>> params = models.init(config, jax.random.key(0))
      >>> tokens = jnp.zeros((2, 8), int)
      >>> mean, sums = models.loss(config, params, tokens, tokens)
      >>> float(sums["token_count"])
      16.0
    """
    options = dict(segment_ids=segment_ids, token_types=token_types, microbatches=microbatches, key=key)
    hidden_BTD = trunk(config, params, tokens_BT, **options)
    return hidden_loss(config, params, hidden_BTD, targets_BT, mask=mask, z_loss=z_loss)


def hidden_loss(
    config: LanguageModel,
    params: dict,
    hidden_BTD: jax.Array,
    targets_BT: jax.Array,
    *,
    mask: jax.Array | None = None,
    z_loss: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return what `loss` does, from the hidden states that `trunk` gave."""
    targets_BT, mask_BT = _counted(config, targets_BT, mask)
    if config.vocab_groups is not None and z_loss:
        raise UserError(f"z_loss={z_loss} is of one softmax and vocab_groups makes two; set it to 0")
    with jax.named_scope("loss"):
        if config.labels:
            sums = _label_sums(logits(config, params, hidden_BTD), targets_BT, mask_BT, z_loss)
            logged = {"loss_sum": sums.cross_entropy, "z_loss": sums.z_loss}
        elif config.vocab_groups is None:
            sums = _loss_sums(config, params, hidden_BTD, targets_BT, mask_BT, z_loss)
            logged = {"loss_sum": sums.cross_entropy, "z_loss": sums.z_loss}
        else:
            sums = grouped_head.loss_sums(config, params, hidden_BTD, targets_BT, mask_BT)
            parts = {"group_loss_sum": sums.group, "slot_loss_sum": sums.slot}
            logged = {"loss_sum": sums.group + sums.slot, "z_loss": jnp.zeros((), jnp.float32), **parts}
    token_count = jnp.sum(mask_BT)
    mean = sums.total / jnp.where(token_count == 0, 1.0, token_count)
    return mean, logged | {"token_count": token_count}


def _counted(
    config: LanguageModel, targets_BT: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Return (int32 targets, their float32 weights): 0 for a negative one, NaN for one beyond the last."""
    mask_BT = jnp.ones(targets_BT.shape, jnp.float32) if mask is None else mask.astype(jnp.float32)
    size = len(config.labels) or config.known_vocab_size
    check_ids(jnp.where(mask_BT != 0, targets_BT, 0), size, "targets")
    targets_BT = targets_BT.astype(jnp.int32)  # one byte holds no size of 256 to compare with
    beyond_BT = (targets_BT >= size) & (mask_BT != 0)
    return targets_BT, jnp.where(targets_BT < 0, 0.0, jnp.where(beyond_BT, jnp.nan, mask_BT))


def token_log_probs(
    config: LanguageModel, params: dict, hidden_BTD: jax.Array, targets_BT: jax.Array
) -> jax.Array:
    """Return log p(target) at each position, float32 [B, T], without full logits.

    Differentiable. On a mesh each device computes its tokens and its part of the vocabulary.

    Args:
      hidden_BTD: what `trunk` returned.
      targets_BT: int [B, T], each an id of the vocabulary.

    Examples:
      >>> from jaxllm import models
      >>> config = models.get_preset("gpt2-nano")
      >>> params = models.init(config, jax.random.key(0))
      >>> hidden = jnp.zeros((2, 8, config.embed_dim))
      >>> models.token_log_probs(config, params, hidden, jnp.zeros((2, 8), int)).shape
      (2, 8)
    """
    with jax.named_scope("token_log_probs"):
        if config.vocab_groups is not None:
            return grouped_head.token_log_probs(config, params, hidden_BTD, targets_BT)

        def of_part(hidden_BTD, weights, targets_BT, **options):
            return kernel.token_log_probs(hidden_BTD, weights, targets_BT, **options)[0]

        return _on_head(config, params, of_part, hidden_BTD, targets_BT)


def _label_sums(logits, targets, mask, z_loss) -> kernel.LossSums:
    """Sum the loss over targets [B] or [B, T], one a row of logits."""
    if targets.shape != logits.shape[:-1]:
        raise UserError(
            f"targets of shape {list(targets.shape)} are not one for each of the labels' logits, "
            f"{list(logits.shape[:-1])}; give a label of each text for head='text_labels', of each token for "
            "head='token_labels'"
        )
    lse = jax.nn.logsumexp(logits, axis=-1)
    index = jnp.clip(targets, 0, logits.shape[-1] - 1)[..., None]
    nll = lse - jnp.take_along_axis(logits, index, axis=-1)[..., 0]
    cross_entropy, z_term = jnp.sum(mask * nll), z_loss * jnp.sum(mask * lse**2)
    return kernel.LossSums(cross_entropy + z_term, *jax.lax.stop_gradient((cross_entropy, z_term)))


def _loss_sums(config, params, hidden_BTD, targets_BT, mask_BT, z_loss) -> kernel.LossSums:
    """Sum the loss over the tokens of all devices."""

    def of_part(hidden_BTD, weights, targets_BT, mask_BT, **options):
        return kernel.linear_cross_entropy(
            hidden_BTD, weights, targets_BT, token_weights_BT=mask_BT, z_loss=z_loss, **options
        )

    arrays = (hidden_BTD, targets_BT, mask_BT)
    return _on_head(config, params, of_part, *arrays, sums=kernel.LossSums(*[PartitionSpec()] * 3))


def _on_head(config, params, function, hidden_BTD, *arrays_BT, sums=None):
    """Call function(hidden, a dense head's weights, *arrays), each device with its tokens and vocabulary.

    Args:
      function: also takes `vocab_axis` and `vocab_axis_name`, as the kernel does.
      sums: pytree of empty PartitionSpecs, structured like the function's result: sums over tokens, which
        are summed over devices. None: the result is one array [B, T].
    """
    hidden_BTD = head_input(config, params, hidden_BTD)
    weights, names = head_weights(config, params)
    vocab_axis = names.index("vocab")
    batch = spread(("batch", None), hidden_BTD.shape[:2])
    if batch is None:
        return function(hidden_BTD, weights, *arrays_BT, vocab_axis=vocab_axis)
    # Barrier: reduce the head's gradient before the layers' backward pass starts, so that the unreduced
    # one is freed.
    hidden_BTD, weights = jax.lax.optimization_barrier((hidden_BTD, weights))
    weights_spec = spread(names, weights.shape)
    vocab_axes, width_axes = (mesh_axes(weights_spec[axis]) for axis in (vocab_axis, 1 - vocab_axis))

    def on_part(hidden_BTD, weights, *arrays_BT):
        if width_axes:
            # all_gather's transpose reduce-scatters; in_specs' would all-reduce.
            weights = weights.astype(hidden_BTD.dtype)
            weights = jax.lax.all_gather(weights, width_axes, axis=1 - vocab_axis, tiled=True)
        options = dict(vocab_axis=vocab_axis, vocab_axis_name=vocab_axes or None)
        result = function(hidden_BTD, weights, *arrays_BT, **options)
        if sums is None or not batch[0]:
            return result
        # One by one: jax 0.7 cannot transpose a sum of which only some results have a gradient.
        return jax.tree.map(lambda x: jax.lax.psum(x, mesh_axes(batch[0])), result)

    in_specs = (PartitionSpec(batch[0], None, None), weights_spec, *[batch] * len(arrays_BT))
    return on_shards(on_part, in_specs, batch if sums is None else sums)(hidden_BTD, weights, *arrays_BT)
