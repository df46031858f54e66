"""Hybrids against float64 NumPy around models run alone, one-hot against the component; caches, meshes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.config import from_plain
from jaxllm.errors import UserError
from jaxllm.generate import Decoder, generate
from jaxllm.parallel import MeshConfig, make_mesh, shardings
from jaxllm.train import to_dict
from tests.models.random_params import random_params

V, T = 31, 9
GPT = models.ModelConfig(
    vocab_size=V, context_length=24, num_layers=4, embed_dim=12, num_heads=2, windows=(0, 3)
)
LLAMA = dataclasses.replace(
    GPT, num_layers=2, embed_dim=8, windows=(0,), position="rotary", norm="rmsnorm", tie_embeddings=False
)
MAMBA = models.MambaConfig(vocab_size=V, num_layers=2, embed_dim=8, state_dim=3)
TOKENS = np.random.default_rng(0).integers(0, V, (2, T))
HIDDEN = np.random.default_rng(1).normal(size=(2, 12)).astype(np.float32)
APPLY = jax.jit(models.apply, static_argnums=0)


@functools.cache
def params_of(part):
    return random_params(part, 0.3)


def hybrid(*parts, key=0, **fields):
    config = models.HybridConfig(parts=parts, **fields)
    return config, models.pretrained_hybrid(config, [params_of(part) for part in parts], jax.random.key(key))


def half(part, params, which):
    """Return half of a model's layers as a model of its own."""
    count = part.num_layers // 2
    cut = jax.tree.map(lambda w: w[which * count : (which + 1) * count], params["layers"])
    return dataclasses.replace(part, num_layers=count), params | {"layers": cut}


def test_mixing_is_the_papers_in_float64():
    rotary = dataclasses.replace(GPT, position="rotary", windows=(0,), scale_embeddings=True)
    config, params = hybrid(rotary, LLAMA, blocks=2, tables="first")
    params = models.with_mixture(params, alphas := np.array([[0.3, 0.7], [0.6, 0.4]]))
    wide, D = functools.partial(np.asarray, dtype=np.float64), 12
    fit = lambda x, d: np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, max(0, d - x.shape[-1]))])[..., :d]
    tables = [wide(params_of(rotary)["embed"]["tokens"]), wide(params["tables"]["1"])]
    h = sum(
        a * fit(t[TOKENS] * scale, D) for a, t, scale in zip(alphas[0], tables, (12**0.5, 1), strict=True)
    )
    for block in range(2):
        new = 0
        for place, (part, a) in enumerate(zip((rotary, LLAMA), alphas[block], strict=True)):
            own = params["projectors"][str(block)][str(place)]
            affine = lambda x, side, own=own: x @ wide(own[side]["linear"]) + wide(own[side]["linear_bias"])
            u = fit((1 - a) * fit(affine(h, "in"), D) + a * h, part.embed_dim)
            sites = models.Sites(capture=("resid_post", "final"))
            seen = models.capture(*half(part, params_of(part), block), jnp.float32(u), sites)[1]
            v = wide(seen["resid_post"][-1] if block == 0 else seen["final"])
            new = new + a * ((1 - a) * affine(v, "out") + a * fit(v, D))
        h = new
    expected = sum(a * fit(h, t.shape[1]) @ t.T for a, t in zip(alphas[0], tables, strict=True))
    np.testing.assert_allclose(APPLY(config, params, TOKENS), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("parts", "fields"),
    [
        ((GPT, MAMBA), dict(blocks=2, tables="parts", projector="mlp")),
        pytest.param(
            (LLAMA, GPT, MAMBA), dict(blocks=1, tables="first", projector="linear_skip"),
            marks=pytest.mark.slow,
        ),
        ((MAMBA,), dict(blocks=2, tables="new", projector="mlp_skip")),
    ],
)
def test_one_hot_is_the_component(parts, fields):
    config, params = hybrid(*parts, **fields)
    for index in range(len(parts)):
        own, own_params = models.component(config, params, index)
        if not config.has_new_table(index):
            assert own == parts[index] and own_params is params_of(parts[index])
        expected = APPLY(own, own_params, TOKENS)
        soft = models.with_mixture(params, np.eye(len(parts))[index])
        np.testing.assert_allclose(APPLY(config, soft, TOKENS), expected, atol=1e-6)
        # Nothing of what rests is read: not even NaN in it.
        rest = {
            name: jax.tree.map(lambda w: w * jnp.nan, tree) if name != str(index) else tree
            for name, tree in params["parts"].items()
        }
        chosen = config.choose((index,) * config.blocks)
        np.testing.assert_allclose(APPLY(chosen, params | {"parts": rest}, TOKENS), expected, atol=1e-6)


@pytest.mark.slow
def test_what_does_not_run_has_no_gradient():
    config, params = hybrid(GPT, MAMBA, LLAMA, blocks=2)
    chosen = config.choose((0, 2))
    found = jax.jit(jax.grad(lambda p: models.loss(chosen, p, TOKENS, TOKENS)[0]))(params)
    moved = {name for name, tree in found["parts"].items() if any(x.any() for x in jax.tree.leaves(tree))}
    assert moved == {"0", "2"} and not found["mixture"]["logits"].any()


@pytest.mark.slow
def test_decoding_is_reading_at_once_and_forks():
    config, params = hybrid(GPT, MAMBA, blocks=2, tables="parts")
    expected = APPLY(config, params, TOKENS)
    decoder = Decoder(config, params)
    mask = np.ones((2, T - 2), bool)
    hidden, prompts = decoder.prefill(TOKENS[:, : T - 2], mask, slots=T)
    np.testing.assert_allclose(models.logits(*decoder, hidden), expected[:, T - 3], atol=2e-5)
    for _ in range(2):  # a fork leaves the prompts good
        fork = decoder.fork(prompts, [1, 0, 1], slots=2)
        for place in (T - 2, T - 1):
            hidden, fork = decoder.step(TOKENS[[1, 0, 1], place], fork)
        np.testing.assert_allclose(models.logits(*decoder, hidden), expected[[1, 0, 1], T - 1], atol=2e-5)
    hidden, fork = decoder.step(TOKENS[[1], 0], decoder.cancel(fork, [0, 2]))
    assert hidden.shape == (1, 12) and np.isnan(hidden).all()  # full
    drawn = generate(*decoder, [[1, 2, 3], [4]], max_new_tokens=3)
    assert [len(row) for row in drawn.tokens] == [3, 3]


@pytest.mark.slow
def test_a_mesh_changes_nothing():
    config, params = hybrid(GPT, MAMBA, blocks=2)
    loss = jax.jit(jax.value_and_grad(lambda p, x: models.loss(config, p, x, x)[0]))
    expected, gradient = loss(params, TOKENS)
    leaves = jax.tree_util.tree_leaves_with_path(gradient)
    still = [jax.tree_util.keystr(path) for path, x in leaves if not x.any()]
    assert all("key_bias" in path for path in still)  # a constant in all scores
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2), devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings(models.axes(config), params, mesh))
        found, sharded = loss(placed, TOKENS)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), sharded, gradient)


def test_mixtures_are_read_set_and_pruned():
    config, params = hybrid(GPT, MAMBA, LLAMA, blocks=2, tables="new")
    assert np.array_equal(models.mixture(params), np.full((2, 3), 1 / 3))
    params = models.with_mixture(params, [[0.55, 0.0, 0.45], [0.96, 0.01, 0.03]])
    small, kept = models.pruned(config, params, 0.05)
    assert small.parts == (config.parts[0], config.parts[2]) and small.running == ((0, 1), (0,))
    soft = dataclasses.replace(config, running=((0, 2), (0,)))
    np.testing.assert_allclose(APPLY(small, kept, TOKENS), APPLY(soft, params, TOKENS), atol=1e-6)
    alone, its = models.pruned(config, models.with_mixture(params, np.eye(3)[1]), 0.05)
    assert alone.parts == (config.parts[1],) and "projectors" not in its
    np.testing.assert_allclose(APPLY(alone, its, TOKENS), APPLY(*models.component(config, params, 1), TOKENS))
    assert small.num_params < config.num_params and small.flops_per_token(8) == soft.flops_per_token(8)


def test_the_widest_part_stays_while_a_block_mixes():
    config, params = hybrid(GPT, LLAMA, MAMBA, blocks=2)
    params = models.with_mixture(params, [[0, 0.5, 0.5], [0.01, 0.99, 0]])
    small, kept = models.pruned(config, params, 0.1)
    assert small.embed_dim == 12 and small.running == ((1, 2), (1,))
    soft = dataclasses.replace(config, running=((1, 2), (1,)))
    np.testing.assert_allclose(APPLY(small, kept, TOKENS), APPLY(soft, params, TOKENS), atol=1e-6)
    alone, its = models.pruned(config, params, 0.5 + 1e-6)  # nothing mixes: the stream may be narrower
    assert alone.parts == (config.parts[1],)
    np.testing.assert_allclose(APPLY(alone, its, TOKENS), APPLY(*models.component(config, params, 1), TOKENS))


def test_a_head_laid_out_for_decoding_is_of_the_mixture_at_hand():
    config, params = hybrid(GPT, LLAMA, MAMBA, blocks=1)
    laid = models.for_decoding(config, params)
    again = models.for_decoding(config, laid)
    assert all(a is b for a, b in zip(jax.tree.leaves(laid), jax.tree.leaves(again), strict=True))
    alphas = [[0.7, 0.2, 0.1]]
    for ours, change in (
        (config, lambda tree: tree),
        (config, lambda tree: models.with_mixture(tree, alphas)),
        (config.choose((1,)), lambda tree: tree),
        (dataclasses.replace(config, running=((0, 2),)), lambda tree: tree),
    ):
        expected = models.logits(ours, change(params), HIDDEN)
        np.testing.assert_allclose(models.logits(ours, change(laid), HIDDEN), expected, atol=1e-5)


def test_a_config_is_written_and_read():
    config = models.HybridConfig(parts=(GPT, MAMBA), blocks=2, dtype="bfloat16").choose((0, 1))
    assert from_plain(models.LanguageModel, to_dict(config), "a file") == config
    assert {part.dtype for part in config.parts} == {"bfloat16"}
    assert config.num_params == sum(x.size for x in jax.tree.leaves(models.shapes(config)))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (dict(blocks=4), "blocks=4 do not divide the 2 layers of part 1; choose one of 1, 2"),
        (dict(projector="none"), r"the parts' widths are .*12, 8"),
        (dict(parts=()), "parts=\\(\\) is no hybrid"),
        (
            dict(parts=(GPT, dataclasses.replace(MAMBA, vocab_size=7)), tables="parts"),
            "vocabulary of 7 tokens",
        ),
        (dict(parts=(dataclasses.replace(GPT, causal=False, windows=(0,)),)), "cannot predict"),
        (dict(parts=(GPT, models.EncoderDecoderConfig())), "part 1 has architecture 'encoder_decoder'"),
        (dict(running=((0,), (0,))), "is of 2 blocks, and blocks=1"),
        (dict(running=((0, 2),)), "block 0 runs the parts"),
        (dict(vocab_groups=models.VocabGroups.of(range(V))), "leave it out"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, said):
    with pytest.raises(UserError, match=said):
        models.HybridConfig(**(dict(parts=(GPT, MAMBA)) | fields))


def test_mixtures_that_are_none_are_refused():
    config, params = hybrid(GPT, MAMBA)
    for wrong, said in (([[0.5, 0.6]], "sum to 1"), ([[1.0, 0, 0]], "one for each block and part")):
        with pytest.raises(UserError, match=said):
            models.with_mixture(params, wrong)
    with pytest.raises(UserError, match="NaN; search again"):
        models.mixture(params | {"mixture": {"logits": np.full((1, 2), np.nan)}})
    with pytest.raises(UserError, match="parameters of 1 are given"):
        models.pretrained_hybrid(config, [params_of(GPT)], jax.random.key(0))
