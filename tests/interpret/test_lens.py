"""The lens on components, against vectors written out one by one in float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.interpret import component_scores, components, lens, row_vectors, unembedding
from tests.models.random_params import random_params

B, T = 3, 9
FAMILIES = ("gpt2-nano", "gpt-neo-nano", "pythia-nano", "llama-nano", "gemma-nano")
families = pytest.mark.parametrize("family", [
    pytest.param(name, marks=pytest.mark.slow if name in ("gpt-neo-nano", "pythia-nano") else ())
    for name in FAMILIES
])  # fmt: skip
TOKEN, OTHER = np.array([65, 66, 67]), np.array([70, 65, 71])
POSITIONS = np.array([8, 3, 6])


@functools.cache
def model(family, **changes):
    config = models.get_preset(family, **changes)
    params = random_params(config, scale=0.2)
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (B, T))
    return config, params, tokens


def as64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


@functools.cache
def parts(family):
    """Return the vectors that components write, and the stream's, from whole captured activations."""
    config, params, tokens = model(family)
    sites = models.Sites(("embed", "head_out", "attn_out", "mlp_hidden", "mlp_out", "resid_post", "final"))
    seen = as64(jax.jit(lambda p: models.capture(config, p, tokens, sites)[1])(params))
    seen = {
        name: x[np.arange(B), POSITIONS] if name in ("embed", "final") else x[:, np.arange(B), POSITIONS]
        for name, x in seen.items()
    }
    layers = as64(params["layers"])
    heads = np.einsum("lbhk,lhkd->lbhd", seen["head_out"], layers["attn"]["out"])
    rows = seen["mlp_hidden"][..., None] * layers["mlp"]["out"][:, None]  # [L, B, F, D]
    bias = np.zeros((config.num_layers, 1, 1, config.embed_dim))
    if "out_bias" in layers["mlp"]:
        bias = layers["mlp"]["out_bias"][:, None, None]
    if config.norm_place == "sandwich":  # root mean squares of whole outputs, gains of every part

        def through(parts, gain):
            whole = parts.sum(2, keepdims=True)
            return parts / np.sqrt((whole**2).mean(-1, keepdims=True) + config.norm_eps) * gain[:, None, None]

        heads = through(heads, layers["attn"]["out_norm"]["scale"])
        rows = through(rows, layers["mlp"]["out_norm"]["scale"])
    return seen, heads, rows, bias


def normed(config, x, like=None):
    """Return x over the root mean square of `like`, both centred with LayerNorm."""
    centred = lambda v: v - v.mean(-1, keepdims=True) if config.norm == "layernorm" else v
    size = np.sqrt((centred(x if like is None else like) ** 2).mean(-1, keepdims=True) + config.norm_eps)
    return centred(x) / size


def unembed(config, params):
    if config.tie_embeddings:
        return np.asarray(params["embed"]["tokens"], np.float64).T
    return np.asarray(params["head"]["kernel"], np.float64)


def logits(family, x, norm):
    """Return a part's logits [..., V] through the lens; of [L, B, ..., D] or [B, D]."""
    config, params, _ = model(family)
    final = as64(params["final_norm"])
    last = parts(family)[0]["resid_post"][-1]
    if x.ndim == 4:
        last = last[:, None]
    x = normed(config, x, None if norm == "own" else last) * final["scale"]
    return (x + (final.get("bias", 0.0) if norm == "own" else 0.0)) @ unembed(config, params)


def difference(logits, axis):
    shape = [1] * logits.ndim
    shape[axis] = B
    one, other = (np.take_along_axis(logits, t.reshape(shape), -1)[..., 0] for t in (TOKEN, OTHER))
    return one - other


@pytest.mark.parametrize("norm", ["own", "final"])
@families
def test_scores_are_those_of_each_vector_by_itself(family, norm):
    config, params, tokens = model(family)
    seen, heads, rows, bias = parts(family)
    found = component_scores(config, params, tokens, TOKEN, OTHER, norm=norm, positions_B=POSITIONS)
    whole_rows = rows + bias if norm == "own" else rows
    expected = {
        "embed_B": difference(logits(family, seen["embed"], norm), 0),
        "attn_LB": difference(logits(family, seen["attn_out"], norm), 1),
        "heads_LBH": difference(logits(family, heads, norm), 1),
        "mlp_LB": difference(logits(family, seen["mlp_out"], norm), 1),
        "rows_LBF": difference(logits(family, whole_rows, norm), 1),
        "resid_LB": difference(logits(family, seen["resid_post"], norm), 1),
        "row_sizes_LBF": np.linalg.norm(rows, axis=-1) * np.sign(seen["mlp_hidden"]),
        "model_B": difference(seen["final"] @ unembed(config, params), 0),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-4, atol=2e-5, err_msg=name)


@families
def test_parts_add_up(family):
    """Rows to the MLP's output within 1e-5, heads to attention's, blocks to the stream, scores to logits."""
    config, params, tokens = model(family)
    seen = components(config, params, tokens, jnp.asarray(POSITIONS))
    rows = jnp.einsum("LBF,LFD->LBD", seen.rows_LBF, row_vectors(config, params)) + seen.mlp_bias_LBD
    np.testing.assert_allclose(rows, seen.mlp_LBD, atol=1e-5)
    np.testing.assert_allclose(seen.heads_LBHD.sum(2) + seen.attn_bias_LBD, seen.attn_LBD, atol=1e-5)
    stream = seen.embed_BD + seen.attn_LBD.sum(0) + seen.mlp_LBD.sum(0)
    np.testing.assert_allclose(stream, seen.resid_LBD[-1], atol=2e-5)
    scores = component_scores(config, params, tokens, TOKEN, OTHER, norm="final", positions_B=POSITIONS)
    whole = scores.embed_B + scores.attn_LB.sum(0) + scores.mlp_LB.sum(0) + scores.bias_B
    np.testing.assert_allclose(whole, scores.model_B, atol=5e-5)
    full = np.asarray(jax.jit(lambda p: models.apply(config, p, tokens))(params))[np.arange(B), POSITIONS]
    np.testing.assert_allclose(
        scores.model_B, full[np.arange(B), TOKEN] - full[np.arange(B), OTHER], atol=5e-5
    )


@pytest.mark.parametrize("norm", ["own", "final"])
def test_a_lens_gives_the_logits_whose_differences_are_scored(norm):
    config, params, tokens = model("gpt2-nano")
    seen = components(config, params, tokens, jnp.asarray(POSITIONS))
    final = seen.resid_LBD[-1] if norm == "final" else None
    found = lens(config, params, seen.mlp_LBD, norm=norm, final_ND=final)
    np.testing.assert_allclose(found, logits("gpt2-nano", parts("gpt2-nano")[0]["mlp_out"], norm), atol=2e-5)
    whole = lens(config, params, seen.resid_LBD[-1], norm="own")
    np.testing.assert_allclose(
        whole, models.apply(config, params, tokens)[np.arange(B), POSITIONS], atol=2e-5
    )


def test_folded_and_unfolded_weights_give_the_same_differences_and_other_logits():
    """TransformerLens' folding: gains into the unembedding, which is centred, as what blocks write is."""
    config, params, tokens = model("gpt2-nano")
    final, matrix = as64(params["final_norm"]), unembed(config, params)
    gain, shift = final["scale"], final["bias"] @ matrix
    folded = gain[:, None] * matrix
    folded -= folded.mean(1, keepdims=True)  # over the vocabulary
    folded -= folded.mean(0, keepdims=True)  # over the width: what LayerNorm reads nothing of
    shift -= shift.mean()
    _, heads, rows, bias = parts("gpt2-nano")
    written = [x - x.mean(-1, keepdims=True) for x in (heads, rows + bias)]
    found = component_scores(config, params, tokens, TOKEN, OTHER, norm="own", positions_B=POSITIONS)
    for x, ours in zip(written, (found.heads_LBH, found.rows_LBF), strict=True):
        by_folded = normed(config, x) @ folded + shift
        np.testing.assert_allclose(ours, difference(by_folded, 1), rtol=1e-4, atol=2e-5)
        assert np.abs(by_folded - logits("gpt2-nano", x, "own")).max() > 0.1


def test_the_two_norms_rank_heads_differently():
    config, params, tokens = model("gpt2-nano")
    own, final = (
        component_scores(config, params, tokens, TOKEN, OTHER, norm=norm).heads_LBH
        for norm in ("own", "final")
    )
    assert np.abs(np.asarray(own)).mean() > 2 * np.abs(np.asarray(final)).mean()


def test_text_after_the_position_changes_little():
    config, params, tokens = model("gpt2-nano")
    ask = functools.partial(component_scores, config, norm="own", positions_B=POSITIONS)
    whole = ask(params, tokens, TOKEN, OTHER)
    padded = np.where(np.arange(T) > POSITIONS[:, None], 0, tokens)
    for one, other in zip(whole, ask(params, padded, TOKEN, OTHER), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_weights_change_little():
    """By a size of less than 3 in 100 of the scores': a rounding is of 4 in 1000, and there are several."""
    config, params, tokens = model("gpt2-nano")
    ask = functools.partial(component_scores, config, norm="own", positions_B=POSITIONS)
    rounded = ask(jax.tree.map(lambda x: x.astype("bfloat16"), params), tokens, TOKEN, OTHER)
    for name, one, other in zip(rounded._fields, ask(params, tokens, TOKEN, OTHER), rounded, strict=True):
        change = np.linalg.norm(np.asarray(other, np.float64) - one) / np.linalg.norm(one)
        assert 0 < change < 0.03, name


def test_unembeddings_are_the_heads_vectors():
    for family in ("gpt2-nano", "pythia-nano"):  # tied, and a matrix of its own
        config, params, _ = model(family)
        np.testing.assert_array_equal(
            unembedding(config, params, TOKEN), unembed(config, params).T[TOKEN].astype(np.float32)
        )


@pytest.mark.parametrize(
    "family, changes, said",
    [
        (
            "mamba-nano",
            {},
            "a lens on heads and MLPs is of transformers, and the model's architecture is mamba",
        ),
        ("bert-nano", {}, "causal=False"),
        ("gpt2-nano", {"norm_place": "post"}, "norm_place='post', which norms the residual stream"),
    ],
)
def test_a_model_without_such_components_is_refused(family, changes, said):
    config = models.get_preset(family, **changes)
    with pytest.raises(UserError, match=said):
        component_scores(config, {}, np.zeros((1, 4), int), 0, 1, norm="own")


def test_bad_input_is_told_in_one_sentence():
    config, params, tokens = model("gpt2-nano")
    with pytest.raises(UserError, match="unknown norm 'owm'; did you mean 'own'"):
        component_scores(config, params, tokens, 0, 1, norm="owm")
    with pytest.raises(UserError, match="token_B"):
        component_scores(config, params, tokens, 256, 1, norm="own")
    with pytest.raises(UserError, match="parameters of another config"):
        component_scores(config, models.layers_apart(params), tokens, 0, 1, norm="own")
    with pytest.raises(UserError, match="final_ND is not given and norm='final'"):
        lens(config, params, jnp.zeros(config.embed_dim), norm="final")
    with pytest.raises(UserError, match="final_ND is given and norm='own'"):
        lens(config, params, jnp.zeros(64), norm="own", final_ND=jnp.zeros(64))
