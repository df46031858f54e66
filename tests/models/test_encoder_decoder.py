"""T5: its buckets by hand, its cache against the whole text, transformers' numbers and gradients."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models, targets
from jaxllm.errors import UserError
from jaxllm.generate import Decoder
from jaxllm.models import huggingface
from jaxllm.models.distance_bias import distance_bias
from jaxllm.models.huggingface_config import config_from_huggingface
from jaxllm.parallel import MeshConfig, make_mesh, shardings
from tests.models.random_params import random_params

CONFIG = models.EncoderDecoderConfig(
    vocab_size=37, num_layers=3, num_encoder_layers=2, embed_dim=20, num_heads=4, head_dim=6, mlp_dim=24,
    distance_buckets=8, longest_distance=10, init_std=0.3,
)  # fmt: skip
RANDOM = np.random.default_rng(0)
CONTEXT, TOKENS = RANDOM.integers(0, 37, (2, 9)), RANDOM.integers(0, 37, (2, 11))
MASK = np.arange(9) < np.array([[9], [5]])


@functools.partial(jax.jit, static_argnums=0)
def hidden_states(config, params, context, mask, tokens):
    return models.trunk(config, params, tokens, context=models.encode(config, params, context, mask))


def bucket(distance, buckets, longest, bidirectional):
    """Return the bucket of key - query, as the paper's code has it, by cases in Python's floats."""
    if bidirectional:
        half = buckets // 2
        return half * (distance > 0) + bucket(-abs(distance), half, longest, False)
    behind, exact = max(-distance, 0), buckets // 2
    if behind < exact:
        return behind
    scale = math.log(behind / exact) / math.log(longest / exact)
    return min(exact + int(scale * (buckets - exact)), buckets - 1)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("buckets, longest", [(8, 10), (32, 128)])
def test_each_distance_has_the_bucket_of_the_papers_code(buckets, longest, bidirectional):
    config = dataclasses.replace(CONFIG, distance_buckets=buckets, longest_distance=longest)
    table = jnp.arange(buckets, dtype=jnp.float32)[:, None]
    found = distance_bias(config, table, jnp.array([0, 150, 299]), 300, bidirectional=bidirectional)[0]
    for row, query in zip(found, (0, 150, 299), strict=True):
        expected = [bucket(key - query, buckets, longest, bidirectional) for key in range(300)]
        np.testing.assert_array_equal(row, expected)


@pytest.mark.parametrize("prepared", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_decoding_with_a_cache_equals_the_whole_text(prepared):
    """Layers as a CPU decodes them, or stacked; rows that drop out; a context of two lengths."""
    params = random_params(CONFIG, 0.2)
    whole = hidden_states(CONFIG, params, CONTEXT, MASK, TOKENS)
    decode, encode = (jax.jit(f, static_argnums=0) for f in (models.decode, models.encode))
    begin = jax.jit(models.context_cache, static_argnums=(0, 3))
    context, alone = encode(CONFIG, params, CONTEXT, MASK), encode(CONFIG, params, CONTEXT[1:, :5])
    np.testing.assert_allclose(context.hidden_BSD[1, :5], alone.hidden_BSD[0], atol=1e-5)
    laid_out = models.for_decoding(CONFIG, params) if prepared else params
    cache = begin(CONFIG, laid_out, context, 11)
    first, cache = decode(CONFIG, laid_out, TOKENS[:, :6], cache)
    np.testing.assert_allclose(first, whole[:, :6], atol=1e-5)
    cache = models.select_rows(cache, [1])
    for t in (6, 7):
        one, cache = decode(CONFIG, laid_out, TOKENS[1:, t : t + 1], cache)
        np.testing.assert_allclose(one[0, 0], whole[1, t], atol=1e-5)
    names = models.cache_axes(CONFIG)
    stacked = jax.eval_shape(lambda: models.context_cache(CONFIG, params, context, 11))
    jax.tree.map(lambda x, axes: len(axes) == x.ndim or pytest.fail(f"{axes} {x.shape}"), stacked, names)


def test_a_prepared_decoder_goes_on_from_a_context():
    params = random_params(CONFIG, 0.2)
    whole = hidden_states(CONFIG, params, CONTEXT, MASK, TOKENS)
    decoder = Decoder(CONFIG, params)
    context = jax.jit(models.encode, static_argnums=0)(*decoder, CONTEXT, MASK)
    cache = models.context_cache(*decoder, context, 11)
    first, cache = decoder.extend(TOKENS[:, :6], cache)
    np.testing.assert_allclose(first, whole[:, :6], atol=1e-5)
    one, cache = decoder.step(TOKENS[:, 6], cache)
    np.testing.assert_allclose(one, whole[:, 6], atol=1e-5)
    one, cache = decoder.step(TOKENS[1:, 7], decoder.cancel(cache, [0]))
    np.testing.assert_allclose(one[0], whole[1, 7], atol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize("tied", [False, True])
def test_logits_and_gradients_match_transformers(tied):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theirs = transformers.T5Config(
        vocab_size=37, d_model=20, d_kv=6, d_ff=24, num_layers=2, num_decoder_layers=3, num_heads=3,
        relative_attention_num_buckets=8, relative_attention_max_distance=10, feed_forward_proj="gated-gelu",
        tie_word_embeddings=tied, dropout_rate=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(theirs).eval()
    if not tied:  # as published: transformers 5 ties what the config does not
        model.lm_head.weight = torch.nn.Parameter(torch.randn(37, 20))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * parameter + 0.1 * torch.randn_like(parameter))
    config = config_from_huggingface(theirs.to_dict())
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    params = huggingface.params_from_state_dict(config, "t5", state)
    tensors = [torch.from_numpy(np.asarray(x, np.int64)) for x in (CONTEXT, MASK, TOKENS)]
    options = dict(zip(("input_ids", "attention_mask", "decoder_input_ids"), tensors, strict=True))
    logits = model(**options).logits
    targets_BT = np.roll(TOKENS, -1, axis=1)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets_BT).flatten()).backward()

    @jax.jit
    def run(params):
        def loss(params):
            hidden = hidden_states(config, params, CONTEXT, MASK, TOKENS)
            mean = models.hidden_loss(config, params, hidden, targets_BT)[0]
            return mean, models.logits(config, params, hidden)

        return jax.grad(loss, has_aux=True)(params)

    gradients, ours = run(params)
    assert np.abs(ours).max() > 0.5 and np.abs(ours - logits.detach().numpy()).max() <= 1e-4
    ours = huggingface.state_dict_from_params(config, "t5", gradients)
    for name, parameter in model.named_parameters():
        assert np.abs(np.asarray(ours[name]) - parameter.grad.numpy()).max() <= 1e-4, name
    back = huggingface.state_dict_from_params(config, "t5", params)
    for name in back:
        np.testing.assert_array_equal(back[name], state[name])


@pytest.mark.slow
def test_loss_and_gradients_on_a_mesh():
    params = random_params(CONFIG)
    context, tokens = (RANDOM.integers(0, 37, (8, T)) for T in (9, 12))

    def loss(params):
        hidden = models.trunk(CONFIG, params, tokens, context=models.encode(CONFIG, params, context))
        return models.hidden_loss(CONFIG, params, hidden, tokens)[0]

    step = jax.value_and_grad(loss)
    value, gradients = jax.jit(step)(params)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    places = shardings(models.axes(CONFIG), models.shapes(CONFIG), mesh)
    with jax.set_mesh(mesh):
        sharded_value, sharded = jax.jit(step, out_shardings=(None, places))(jax.device_put(params, places))
    query = sharded["encoder"]["layers"]["attn"]["query"]
    assert query.addressable_shards[0].data.size == query.size // 4
    assert np.abs(sharded_value - value) <= 1e-5
    for a, b in zip(jax.tree.leaves(sharded), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.targets
@pytest.mark.parametrize("target", ["v5e-1", "h100"])
def test_a_step_compiles(target):
    if not targets.is_available(target):
        pytest.skip(f"the compiler for {target} is not installed")
    config = models.get_preset("flan-t5-small", num_layers=2, dtype="bfloat16", remat="full")
    place = jax.sharding.SingleDeviceSharding(targets.devices(target)[0])
    shaped = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
    tokens = shaped(jax.ShapeDtypeStruct((4, 128), jnp.int32))

    def loss(params, context, tokens):
        hidden = models.trunk(config, params, tokens, context=models.encode(config, params, context))
        return models.hidden_loss(config, params, hidden, tokens)[0]

    lowered = jax.jit(jax.grad(loss)).lower(jax.tree.map(shaped, models.shapes(config)), tokens, tokens)
    program = lowered.compile(compiler_options=targets.compiler_options(target) or None)
    assert program.memory_analysis().temp_size_in_bytes < 2**30


def test_what_is_missing_or_does_not_fit_is_named():
    params = random_params(CONFIG)
    with pytest.raises(UserError, match="needs a context; give context=models.encode"):
        models.trunk(CONFIG, params, TOKENS)
    with pytest.raises(UserError, match="cache begins with a context: models.context_cache"):
        models.init_cache(CONFIG, 2, 20)
    with pytest.raises(UserError, match="takes no segment_ids"):
        context = models.encode(CONFIG, params, CONTEXT)
        models.trunk(CONFIG, params, TOKENS, context=context, segment_ids=TOKENS)
    with pytest.raises(UserError, match="longest_distance=4 must be above half of distance_buckets=8"):
        dataclasses.replace(CONFIG, longest_distance=4)
