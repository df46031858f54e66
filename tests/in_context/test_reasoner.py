"""A module reads pairs as a GPT-2 would, never the label that it is asked for, and no more than it may."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.in_context import Curriculum, ProblemBatches, ReasonerConfig, axes, draw_problems, init, logits
from tests.models.random_params import random_params

SIZES = dict(features=3, max_pairs=5, num_layers=2, embed_dim=16, num_heads=2)
KINDS = {
    "pair": ReasonerConfig(**SIZES),
    "alone": ReasonerConfig(**SIZES, label_tokens="alone", position="learned"),
}


@pytest.fixture(scope="module", params=KINDS)
def case(request):
    config = KINDS[request.param]
    params = init(config, jax.random.key(1))
    return config, params, jax.jit(lambda x, y: logits(config, params, x, y))


def problem(rows=2, pairs=4):
    drawn = draw_problems(np.random.default_rng(0), rows, pairs, 3)
    return drawn.x_BKF, drawn.y_BK


def by_hand(config, params, x_KF, y_K):
    """Return the logits in float64 NumPy, token by token as the paper's code lays them out."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    tokens = []
    for x_F, y in zip(x_KF, y_K, strict=True):
        if config.label_tokens == "pair":
            tokens += [[*x_F, 0], [*x_F, 1 if y else -1]]
        else:
            tokens += [x_F, [y, *np.zeros(len(x_F) - 1)]]
    h = np.array(tokens) @ p["read_in"]["kernel"] + p["read_in"]["bias"]
    if config.position == "learned":
        h += p["decoder"]["embed"]["positions"][: len(h)]

    def norm(x, w):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w["scale"] + w["bias"]

    for layer in range(config.num_layers):
        w = jax.tree.map(lambda x: x[layer], p["decoder"]["layers"])  # noqa: B023
        a = norm(h, w["attn_norm"])
        q, k, v = (np.einsum("td,dhk->thk", a, w["attn"][n]) + w["attn"][n + "_bias"]
                   for n in ("query", "key", "value"))  # fmt: skip
        scores = np.einsum("thk,shk->hts", q, k) / np.sqrt(q.shape[-1])
        scores[:, np.triu(np.ones(scores.shape[1:], bool), 1)] = -np.inf
        chances = np.exp(scores - scores.max(-1, keepdims=True))
        chances /= chances.sum(-1, keepdims=True)
        mixed = np.einsum("hts,shk->thk", chances, v)
        h = h + np.einsum("thk,hkd->td", mixed, w["attn"]["out"]) + w["attn"]["out_bias"]
        m = norm(h, w["mlp_norm"]) @ w["mlp"]["in"] + w["mlp"]["in_bias"]
        m = 0.5 * m * (1 + np.tanh(np.sqrt(2 / np.pi) * (m + 0.044715 * m**3)))
        h = h + m @ w["mlp"]["out"] + w["mlp"]["out_bias"]
    return (norm(h, p["decoder"]["final_norm"]) @ p["decoder"]["embed"]["tokens"][0])[::2]


def test_logits_are_those_of_a_gpt2_by_hand(case):
    config, params, run = case
    x_BKF, y_BK = problem()
    wanted = np.stack([by_hand(config, params, *one) for one in zip(x_BKF, y_BK, strict=True)])
    found = np.asarray(run(x_BKF, y_BK))
    assert np.abs(wanted).max() > 0.01
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_label_is_not_seen_by_what_asks_for_it_to_the_last_bit(case):
    _, _, run = case
    x_BKF, y_BK = problem()
    before = np.asarray(run(x_BKF, y_BK))
    for k in range(y_BK.shape[1]):
        changed = y_BK.copy()
        changed[:, k] = 1 - changed[:, k]
        after = np.asarray(run(x_BKF, changed))
        np.testing.assert_array_equal(after[:, : k + 1], before[:, : k + 1])
        assert k + 1 == y_BK.shape[1] or (after[:, k + 1 :] != before[:, k + 1 :]).all()
        later = x_BKF.copy()
        later[:, k + 1 :] += 1
        np.testing.assert_array_equal(np.asarray(run(later, y_BK))[:, : k + 1], before[:, : k + 1])


def test_axes_name_every_parameter_and_sizes_count_them(case):
    config, params, _ = case
    named = jax.tree.map(lambda x, names: len(names) == x.ndim, params, axes(config))
    assert all(jax.tree.leaves(named))
    assert config.num_params == sum(x.size for x in jax.tree.leaves(params))


def test_more_pairs_than_were_trained_on_are_refused():
    config = KINDS["pair"]
    x_BKF, y_BK = problem(pairs=7)
    with pytest.raises(UserError, match="^6 labelled pairs, and the module was trained on 5 at most; give"):
        logits(config, init(config, jax.random.key(0)), x_BKF, y_BK)
    with pytest.raises(UserError, match="label_tokens='alone' needs position='learned'"):
        ReasonerConfig(label_tokens="alone")
    with pytest.raises(UserError, match="num_heads=3 does not divide embed_dim=64"):
        ReasonerConfig(num_heads=3)


def test_a_transformer_takes_vectors_in_place_of_tokens():
    """The table's own vectors give what the ids give, bit for bit, whole and from a cache."""
    config = models.get_preset("gpt2-nano", num_layers=1, embed_dim=16, num_heads=2, vocab_size=11)
    params = random_params(config)
    tokens = np.random.default_rng(0).integers(0, 11, (2, 6))
    vectors = params["embed"]["tokens"][tokens]
    for run in (
        lambda inputs: models.trunk(config, params, inputs),
        lambda inputs: models.decode(config, params, inputs, models.init_cache(config, 2, 6))[0],
    ):
        np.testing.assert_array_equal(*map(jax.jit(run), (jnp.asarray(tokens), vectors)))
    for wrong in (vectors[..., :3], jnp.ones((2, 6, 16), int)):
        with pytest.raises(UserError, match=r"vectors in place of tokens are .* give floats \[B, T, 16\]"):
            models.trunk(config, params, wrong)


def test_problems_are_of_logistic_regression():
    draw = np.random.default_rng(3)
    drawn = draw_problems(draw, 4000, 6, 3, alphas=(2.0,), bias=0.5, used_features=2)
    assert not drawn.x_BKF[..., 2].any() and abs(drawn.x_BKF[..., :2].std() - 1) < 0.02
    assert abs(drawn.w_BF.std() - 2) < 0.05 and abs(drawn.b_B.std() - 1) < 0.05
    z = (drawn.x_BKF * drawn.w_BF[:, None]).sum(-1) + drawn.b_B[:, None]
    chance = 1 / (1 + np.exp(-z.astype(np.float64)))
    for low in np.arange(0, 1, 0.2):  # labels are as frequent as their chance says
        some = (chance >= low) & (chance < low + 0.2)
        assert abs(drawn.y_BK[some].mean() - chance[some].mean()) < 4.5 * 0.5 / some.sum() ** 0.5
    assert not draw_problems(draw, 10, 5, 2).b_B.any()
    mixed = draw_problems(draw, 300, 4, 4, used_features=3, fewest_features=2).x_BKF != 0
    assert set(mixed[:, 0].sum(axis=1)) == {2, 3} and (mixed == mixed[:, :1]).all()
    assert abs(mixed[:, 0].mean(axis=0) - 2.5 / 4).max() < 0.12


def test_batches_grow_and_go_on_where_they_stood():
    grown = Curriculum(first_features=2, more_features=1, first_pairs=2, more_pairs=2, feature_steps=2,
                       pair_steps=2)  # fmt: skip
    options = dict(rows=4, pairs=5, features=3, seed=7)
    whole, again = ProblemBatches(grown, **options), ProblemBatches(grown, **options)
    taken = [next(whole) for _ in range(6)]
    assert [batch["x"].shape for batch in taken] == [(4, k, 3) for k in (3, 3, 5, 5, 6, 6)]
    assert not taken[1]["x"][..., 2].any() and taken[2]["x"][..., 2].all()
    state = [next(again) and again.state() for _ in range(4)][-1]
    later = ProblemBatches(grown, **options)
    later.restore(state)
    np.testing.assert_array_equal(next(later)["x"], taken[4]["x"])
    parts = [next(ProblemBatches(grown, **options, process=(part, 2)))["y"] for part in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(parts), taken[0]["y"])
    with pytest.raises(UserError, match="alphas is empty; give at least one"):
        Curriculum(alphas=())
