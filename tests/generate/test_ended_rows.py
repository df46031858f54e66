"""Rows that end drop out of the computation: no compiling, and the same tokens."""

import jax
import numpy as np
import pytest

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.generate import Decoder, combine_models, decoding, generate, stream
from jaxllm.generate.draw import draw
from tests.models.random_params import random_params

CONFIG = models.get_preset("llama-nano", vocab_size=256)
DECODER = Decoder(CONFIG, random_params(CONFIG, 0.3))
PROMPTS = [[5, 9, 200], [17], list(range(40)), [3]]
OPTIONS = dict(max_new_tokens=24, tokens_per_call=3)


def add(ours_BV, theirs_MBV, state):
    return ours_BV + theirs_MBV[0]


def run(prompts, ended, **options):
    """Cancel rows after the first call; return (all that was drawn, how many rows each call computed)."""
    pieces, sizes, drawn = stream(*DECODER, prompts, **OPTIONS | options), [], []
    for piece in pieces:
        sizes.append(len(pieces._rows))
        drawn.append(piece)
        pieces.cancel(ended)
    return jax.tree.map(lambda *x: np.concatenate(x, axis=1), *drawn), sizes


@pytest.mark.parametrize(
    "shared, second", [pytest.param(False, False, marks=pytest.mark.slow), (True, True)]
)
def test_rows_that_ended_drop_out_without_compiling(shared, second, monkeypatch):
    monkeypatch.setattr(decoding, "_PROGRAMS", {})
    prompts = [PROMPTS[0]] * 4 if shared else PROMPTS
    options = dict(processors=[combine_models(DECODER, add)]) if second else {}
    whole, sizes = run(prompts, [], **options)
    assert sizes == [4] * 8
    compiled = draw._cache_size()
    slow, sizes = run(prompts, [0, 2, 3], **options)
    assert sizes == [4] * 8 and draw._cache_size() == compiled  # no smaller program is there yet
    run(prompts[1:3], [], **options)
    compiled = draw._cache_size()
    fast, sizes = run(prompts, [0, 2, 3], **options)
    assert sizes == [4] + [2] * 7 and draw._cache_size() == compiled
    for some in (slow, fast):  # what a row draws depends on no other row
        np.testing.assert_array_equal(some.tokens[1], whole.tokens[1])
        for name in ("log_probs", "sampled_log_probs"):
            np.testing.assert_allclose(getattr(some, name)[1], getattr(whole, name)[1], atol=1e-5)
        for row in (0, 2, 3):
            np.testing.assert_array_equal(some.tokens[row, :3], whole.tokens[row, :3])
            assert (some.tokens[row, 3:] == whole.tokens[row, 2]).all()
            assert not some.log_probs[row, 3:].any()


def test_rows_draw_alike_alone_and_together():
    together = generate(*DECODER, PROMPTS, **OPTIONS)
    alone = generate(*DECODER, PROMPTS[:1], **OPTIONS)
    assert alone.tokens[0] == together.tokens[0]


def test_equal_prompts_draw_what_they_draw_with_a_cache_of_their_own(monkeypatch):
    prompts = [PROMPTS[2]] * 3 + [PROMPTS[0]] * 3
    shared = generate(*DECODER, prompts, **OPTIONS)
    assert len({tuple(row) for row in shared.tokens}) == 6
    # One row more, and the repeats are no longer regular: each row has a cache of its own.
    apart = generate(*DECODER, [*prompts, PROMPTS[1]], **OPTIONS)
    assert apart.tokens[:6] == shared.tokens
    for a, b in zip(apart.log_probs[:6], shared.log_probs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_a_row_that_there_is_not_cannot_be_cancelled():
    pieces = stream(*DECODER, PROMPTS, **OPTIONS)
    with pytest.raises(UserError, match="row 4 .* rows 0 to 3"):
        pieces.cancel([4])
