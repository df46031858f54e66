"""Cross-entropy of a linear head without its logits in memory."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm_kernels.compat import varying_like
from jaxllm_kernels.dispatch import automatic_devices, dispatch
from jaxllm_kernels.linear_cross_entropy import reference, xla
from jaxllm_kernels.linear_cross_entropy.labels import refuse_unknown, settle, settle_hidden, weighted
from jaxllm_kernels.linear_cross_entropy.options import CPU_SIZES, DEVICE_SIZES, Options

IMPLEMENTATIONS = ("reference", "xla", "pallas_tpu", "pallas_gpu")
# Up to this width the kernels run by default, for 2-byte types: they move 3 to 4 times fewer bytes
# than chunks do, at the price of a fourth matmul, which costs more than that in a wider model. By
# compilers' estimates and rooflines (experiments/benchmarks/cross_entropy.py), not by a clock.
KERNEL_WIDTH = 1024


class LossSums(NamedTuple):
    """Float32 scalars. Only `total` has a gradient; the other two are its parts, to be logged."""

    total: jax.Array
    cross_entropy: jax.Array
    z_loss: jax.Array


def linear_cross_entropy(
    hidden_BTD: jax.Array,
    weights: jax.Array,
    labels_BT: jax.Array,
    *,
    token_weights_BT: jax.Array | None = None,
    limits_BT: jax.Array | None = None,
    vocab_axis: int = 1,
    z_loss: float = 0.0,
    vocab_axis_name: str | tuple[str, ...] | None = None,
    logits_bytes: int | None = None,
    implementation: str | None = None,
) -> LossSums:
    """Return the weighted sum over tokens of -log softmax(hidden @ weights)[label].

    The gradients of hidden and weights are computed in the forward pass and scaled in the backward
    pass, so logits exist for one chunk of time steps only, or (Pallas) for one block. Matmuls run in
    hidden's dtype and accumulate in float32. Not twice differentiable; the reference is.

    Inside `shard_map` with tokens on several devices, the sums are of this device's tokens, and
    the weights' gradient is summed over devices once, by the transpose of `shard_map`.

    Args:
      hidden_BTD: [B, T, D] or [N, D].
      weights: [D, V], or [V, D] with vocab_axis=0 (a tied token table): neither is transposed.
      labels_BT: int [B, T] or [N]; any value where the token weight is 0. A negative one (-100, as torch has
        it) does not count. One that is beyond the vocabulary or its limit and counts makes the sums and
        the gradients NaN, or an error if labels, token weights and limits are NumPy's.
      token_weights_BT: weight of each token, 0 leaves it out, whatever its hidden states; None: 1. No
        gradient.
      limits_BT: int, at least 1 where the token counts: its softmax is over this many leading columns;
        None: all.
      vocab_axis: which axis of weights is the vocabulary.
      z_loss: coefficient of logsumexp**2, added to each token's loss (PaLM, arXiv 2204.02311).
      vocab_axis_name: inside `shard_map`, the mesh axes over which weights' vocabulary is spread,
        in equal parts; labels and limits count from the first column of the first part.
      logits_bytes: upper bound of one chunk's float32 logits on one device; None: the platform's.
      implementation: "reference" (full logits), "xla" (chunked), "pallas_tpu", "pallas_gpu", or
        None for the best one that can run this on the platform the program is lowered for.

    Examples:
      >>> hidden, weights = jnp.zeros((1, 3, 4)), jnp.zeros((4, 8))
      >>> sums = linear_cross_entropy(hidden, weights, jnp.zeros((1, 3), int))
      >>> print(f"{sums.total / 3:.4f}")  # log 8
      2.0794
    """
    options = Options(vocab_axis, float(z_loss), vocab_axis_name)
    _check(hidden_BTD, weights, labels_BT, token_weights_BT, limits_BT, options, implementation, logits_bytes)
    size = options.shards() * weights.shape[vocab_axis]
    refuse_unknown("labels", labels_BT, token_weights_BT, size, limits_BT)
    labels_BT, limits_BT = _int32(labels_BT, limits_BT)
    if token_weights_BT is None:
        token_weights_BT = jnp.ones_like(labels_BT)
    token_weights_BT = jax.lax.stop_gradient(token_weights_BT.astype(jnp.float32))
    # From here on labels that do not count, or do not exist, are 0: safe in a gather.
    labels_BT, token_weights_BT = settle(labels_BT, token_weights_BT, _sizes(size, limits_BT))
    if limits_BT is not None:
        limits_BT = jnp.where(limits_BT > 0, limits_BT, size)  # below 1: out already, or NaN
    hidden_BTD = settle_hidden(hidden_BTD, token_weights_BT)
    if implementation == "reference" or labels_BT.size == 0:
        nll, z = reference.linear_cross_entropy(
            hidden_BTD, weights, labels_BT, token_weights_BT, limits_BT, options
        )
        return LossSums(nll + z, *jax.lax.stop_gradient((nll, z)))
    arrays = _alike(*_with_batch(hidden_BTD, weights, labels_BT, token_weights_BT, limits_BT))
    total, *parts = _weighted_sum(*arrays, _Fixed(options, logits_bytes, implementation))
    parts = jax.lax.stop_gradient(parts)
    if vocab_axis_name is not None:
        # Apart: jax 0.7 cannot transpose a sum of which only some results have a gradient.
        total, parts = jax.lax.psum(total, vocab_axis_name), jax.lax.psum(parts, vocab_axis_name)
    return LossSums(total, *parts)


def token_log_probs(
    hidden_BTD: jax.Array,
    weights: jax.Array,
    labels_BT: jax.Array,
    *,
    limits_BT: jax.Array | None = None,
    vocab_axis: int = 1,
    vocab_axis_name: str | tuple[str, ...] | None = None,
    logits_bytes: int | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return (log softmax(hidden @ weights)[label], logsumexp of the logits), float32 [B, T] each.

    The log probability is NaN of a label outside [0, V) or not below its limit; NumPy labels are refused.
    Differentiable any number of times; a gradient recomputes the logits. "xla" and "reference" are so in
    forward mode too. Arguments as in `linear_cross_entropy`.
    """
    options = Options(vocab_axis, vocab_axis_name=vocab_axis_name)
    _check(hidden_BTD, weights, labels_BT, None, limits_BT, options, implementation, logits_bytes)
    size = options.shards() * weights.shape[vocab_axis]
    refuse_unknown("labels", labels_BT, None, size, limits_BT, may_be_negative=False)
    labels_BT, limits_BT = _int32(labels_BT, limits_BT)
    ones_BT = jnp.ones(labels_BT.shape, jnp.float32)
    labels_BT, exists_BT = settle(labels_BT, ones_BT, _sizes(size, limits_BT))
    if implementation == "reference" or labels_BT.size == 0:
        log_prob_BT, lse_BT = reference.token_log_probs(hidden_BTD, weights, labels_BT, limits_BT, options)
        return jnp.where(exists_BT == 1, log_prob_BT, jnp.nan), lse_BT
    arrays = _alike(*_with_batch(hidden_BTD, weights, labels_BT, limits_BT))
    fixed = _Fixed(options, logits_bytes, implementation)
    if implementation == "xla":
        stats = _dispatch(fixed, arrays, xla.token_stats, None)
    else:
        stats = _token_stats(*arrays, fixed)
    lse_BT, label_BT = (x_BT.reshape(labels_BT.shape) for x_BT in stats)
    lse_BT = options.combine(lse_BT)
    loss_BT, _ = options.losses(lse_BT, label_BT)
    if vocab_axis_name is not None:
        loss_BT = jax.lax.psum(loss_BT, vocab_axis_name)
    return jnp.where(exists_BT == 1, -loss_BT, jnp.nan), lse_BT


class _Fixed(NamedTuple):
    """What is known when the program is traced."""

    options: Options
    logits_bytes: int | None
    implementation: str | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _weighted_sum(hidden_BTD, weights, labels_BT, token_weights_BT, limits_BT, fixed: _Fixed):
    """Return (total, its cross-entropy part, its z-loss part): one vocabulary shard's share."""
    arrays = hidden_BTD, weights, labels_BT, token_weights_BT, limits_BT
    kernel = functools.partial(_kernel_sums, with_gradients=False)
    sums = _dispatch(fixed, arrays, xla.loss_sums, kernel)
    return sums[0] + sums[1], *sums


def _weighted_sum_forward(hidden_BTD, weights, labels_BT, token_weights_BT, limits_BT, fixed):
    top = jnp.ones((), jnp.float32)
    if hidden_BTD.dtype == jnp.float16:  # it has no room for the gradients of a mean's small weights
        top = jnp.max(jnp.abs(token_weights_BT))
        top = jnp.where(top > 0, top, 1.0)
        token_weights_BT /= top
    arrays = hidden_BTD, weights, labels_BT, token_weights_BT, limits_BT
    kernel = functools.partial(_kernel_sums, with_gradients=True)
    sums, d_hidden_BTD, d_weights = _dispatch(fixed, arrays, xla.loss_and_gradients, kernel)
    if hidden_BTD.dtype == jnp.float16:
        sums = tuple(x * top for x in sums)
    if weights.dtype != jnp.float16:  # nor for the gradients of a sum over many tokens
        d_weights = d_weights.astype(weights.dtype)
    return (sums[0] + sums[1], *sums), (d_hidden_BTD, d_weights, top, jnp.ones((), weights.dtype))


def _weighted_sum_backward(fixed, saved, cotangents):
    d_hidden_BTD, d_weights, top, one = saved

    def scaled(gradient, dtype):
        return (gradient.astype(jnp.float32) * (cotangents[0] * top)).astype(dtype)

    return scaled(d_hidden_BTD, d_hidden_BTD.dtype), scaled(d_weights, one.dtype), None, None, None


_weighted_sum.defvjp(_weighted_sum_forward, _weighted_sum_backward)


def _kernel_sums(
    module, hidden_BTD, weights, labels_BT, token_weights_BT, limits_BT, *, options, with_gradients
):
    """Do what xla.loss_sums or xla.loss_and_gradients does, with a module's kernels."""
    hidden_ND, *local = _flat(hidden_BTD, weights, labels_BT, limits_BT, options)
    weight_N = token_weights_BT.reshape(-1)
    lse_N, label_N = module.stats(hidden_ND, weights, *local, options=options)
    lse_N = options.combine(lse_N)
    losses = options.losses(lse_N, label_N)
    sums = tuple(jnp.sum(weighted(weight_N, x_N)) for x_N in losses)
    if not with_gradients:
        return sums
    slopes = options.slopes(lse_N, weight_N)
    d_hidden_ND, d_weights = module.gradients(
        hidden_ND, weights, *local, lse_N, slopes, options=options
    )
    return sums, d_hidden_ND.reshape(hidden_BTD.shape), d_weights


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _token_stats(hidden_BTD, weights, labels_BT, limits_BT, fixed: _Fixed):
    """Return (logsumexp, label's logit), [B, T] each, of one vocabulary shard."""
    return _dispatch(fixed, (hidden_BTD, weights, labels_BT, limits_BT), xla.token_stats, _kernel_stats)


def _token_stats_forward(hidden_BTD, weights, labels_BT, limits_BT, fixed):
    stats = _token_stats(hidden_BTD, weights, labels_BT, limits_BT, fixed)
    return stats, (hidden_BTD, weights, labels_BT, limits_BT, stats[0])


def _token_stats_backward(fixed, saved, cotangents):
    d_hidden_BTD, d_weights = _token_gradients(*saved, *cotangents, fixed)
    return d_hidden_BTD, d_weights, None, None


_token_stats.defvjp(_token_stats_forward, _token_stats_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(7,))
def _token_gradients(hidden_BTD, weights, labels_BT, limits_BT, lse_BT, by_lse, by_label, fixed):
    """Return the gradients of hidden and weights for given gradients of the statistics."""
    arrays = hidden_BTD, weights, labels_BT, limits_BT, lse_BT, by_lse, by_label
    return _dispatch(fixed, arrays, _xla_token_gradients, _kernel_token_gradients)


def _token_gradients_forward(*arguments):
    return _token_gradients(*arguments), arguments[:-1]


def _token_gradients_backward(fixed, saved, cotangents):
    # A gradient of the gradient goes through plain XLA, whatever computed the first.
    hidden_BTD, weights, labels_BT, limits_BT, lse_BT, *slopes = saved

    def again(hidden_BTD, weights, slopes):
        arrays = hidden_BTD, weights, labels_BT, limits_BT, lse_BT, *slopes
        return _dispatch(fixed._replace(implementation="xla"), arrays, _xla_token_gradients, None)

    d_hidden_BTD, d_weights, d_slopes = jax.vjp(again, hidden_BTD, weights, slopes)[1](cotangents)
    return d_hidden_BTD, d_weights, None, None, jnp.zeros_like(lse_BT), *d_slopes


_token_gradients.defvjp(_token_gradients_forward, _token_gradients_backward)


def _xla_token_gradients(
    hidden_BTD, weights, labels_BT, limits_BT, lse_BT, *slopes, options, sizes
):
    def stats(hidden_BTD, weights):
        return xla.token_stats(
            hidden_BTD, weights, labels_BT, limits_BT, options=options, sizes=sizes
        )

    return jax.vjp(stats, hidden_BTD, weights)[1](slopes)


def _kernel_stats(module, hidden_BTD, weights, labels_BT, limits_BT, *, options):
    hidden_ND, *local = _flat(hidden_BTD, weights, labels_BT, limits_BT, options)
    stats = module.stats(hidden_ND, weights, *local, options=options)
    return tuple(x_N.reshape(labels_BT.shape) for x_N in stats)


def _kernel_token_gradients(
    module, hidden_BTD, weights, labels_BT, limits_BT, lse_BT, *slopes, options
):
    hidden_ND, *local = _flat(hidden_BTD, weights, labels_BT, limits_BT, options)
    lse_N, *slopes = (x_BT.reshape(-1) for x_BT in (lse_BT, *slopes))
    d_hidden_ND, d_weights = module.gradients(
        hidden_ND, weights, *local, lse_N, slopes, options=options
    )
    return d_hidden_ND.reshape(hidden_BTD.shape), d_weights.astype(weights.dtype)


def _flat(hidden_BTD, weights, labels_BT, limits_BT, options: Options):
    """Return hidden [N, D], labels [N] and limits [N], counted from this shard's first column."""
    labels_BT, limits_BT = options.local(labels_BT, limits_BT, weights)
    if limits_BT is None:
        limits_BT = jnp.full_like(labels_BT, weights.shape[options.vocab_axis])
    labels_N, limits_N = (x_BT.reshape(-1) for x_BT in (labels_BT, limits_BT))
    return hidden_BTD.reshape(-1, hidden_BTD.shape[-1]), labels_N, limits_N


def _dispatch(fixed: _Fixed, arrays, by_xla, by_kernel):
    """Call by_xla(*arrays, options=, sizes=) or by_kernel(module, *arrays, options=)."""
    from jaxllm_kernels.linear_cross_entropy import pallas_gpu, pallas_tpu  # here: Pallas is slow to import

    pallas = {"pallas_tpu": pallas_tpu, "pallas_gpu": pallas_gpu}
    options = fixed.options
    candidates = {"xla": lambda *arrays: _with_sizes(by_xla, fixed, arrays)}
    for name, module in pallas.items() if by_kernel else ():
        if fixed.implementation is not None or _is_default(arrays[0]):
            candidates[name] = functools.partial(by_kernel, module, options=options)
    cannot = {name: module.cannot(arrays[0], arrays[1], options) for name, module in pallas.items()}
    return dispatch("linear_cross_entropy", fixed.implementation, candidates, cannot, *arrays)


def _is_default(hidden_BTD) -> bool:
    return hidden_BTD.shape[-1] <= KERNEL_WIDTH and hidden_BTD.dtype.itemsize == 2


def _with_sizes(by_xla, fixed: _Fixed, arrays):
    devices = automatic_devices()

    def run(sizes, *arrays):
        sizes = sizes._replace(logits_bytes=(fixed.logits_bytes or sizes.logits_bytes) * devices)
        return by_xla(*arrays, options=fixed.options, sizes=sizes)

    on_device = functools.partial(run, DEVICE_SIZES)
    if devices > 1:
        return on_device(*arrays)
    on_cpu = functools.partial(run, CPU_SIZES)
    return jax.lax.platform_dependent(*arrays, cpu=on_cpu, default=on_device)


def _sizes(size: int, limits_BT):
    """Return how many labels there are, or how many each token has."""
    return size if limits_BT is None else jnp.minimum(limits_BT, size)


def _int32(*arrays):
    return (x if x is None else jnp.asarray(x, jnp.int32) for x in arrays)


def _with_batch(hidden, weights, *others):
    """Return [1, N, D] and [1, N] for [N, D] and [N]."""
    if hidden.ndim == 3:
        return hidden, weights, *others
    return hidden[None], weights, *(x if x is None else x[None] for x in others)


def _alike(*arrays):
    # Inside shard_map all then vary over the same axes, and a replicated input's gradient is summed.
    return [x if x is None else varying_like(x, *arrays) for x in arrays]


def _check(hidden, weights, labels, token_weights, limits, options: Options, implementation, logits_bytes):
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(f"implementation '{implementation}' is not one of {IMPLEMENTATIONS}")
    if hidden.ndim not in (2, 3):
        raise ValueError(f"hidden {hidden.shape} is neither [B, T, D] nor [N, D]")
    vocab_axis = options.vocab_axis
    if vocab_axis not in (0, 1) or weights.ndim != 2 or weights.shape[1 - vocab_axis] != hidden.shape[-1]:
        raise ValueError(
            f"weights {weights.shape} with vocab_axis={vocab_axis} do not fit hidden {hidden.shape}"
        )
    if 0 in weights.shape:
        raise ValueError(f"weights {weights.shape} are empty; a softmax needs at least one column")
    for name, array in {"labels": labels, "token_weights": token_weights, "limits": limits}.items():
        if array is not None and array.shape != hidden.shape[:-1]:
            raise ValueError(f"{name} {array.shape} do not fit hidden {hidden.shape}")
    for name, array in {"labels": labels, "limits": limits}.items():
        if array is not None and not jnp.issubdtype(array.dtype, jnp.integer):
            raise ValueError(f"{name} are of type {array.dtype}; give whole numbers, such as int32")
    if logits_bytes is not None and logits_bytes < 1:
        raise ValueError(f"logits_bytes={logits_bytes} holds no logits; give a positive number, or None")
