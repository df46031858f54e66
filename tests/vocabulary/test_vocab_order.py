"""Orders of a vocabulary and their groups, on merges made by hand and on GPT-2's."""

import json
import re

import numpy as np
import pytest

from jaxllm.data import load_tokenizer
from jaxllm.data.bpe import from_json
from jaxllm.errors import UserError
from jaxllm.models import VocabGroups
from jaxllm.vocabulary import VOCAB_ORDERS, vocab_order

TOKENS = ["<|endoftext|>", "a", "b", "c", "ab", "bc", "aa", "abc", "aab", "ca"]
MERGES = [("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc"), ("a", "a"), ("a", "ab"), ("c", "a")]


@pytest.fixture(scope="module")
def by_hand():
    model = {"type": "BPE", "vocab": {t: i for i, t in enumerate(TOKENS)}, "merges": MERGES}
    special = {"id": 0, "content": TOKENS[0], "single_word": False, "lstrip": False, "rstrip": False,
               "normalized": False, "special": True}  # fmt: skip
    return from_json(json.dumps({"version": "1.0", "added_tokens": [special], "model": model}), "by hand")


def named(order):
    return [TOKENS[i] for i in order]


def test_a_token_hangs_under_the_left_part_of_its_first_merge(by_hand):
    """abc is ab + c (its first merge), not a + bc; roots are the tokens that no merge makes."""
    found = named(vocab_order("merge_tree", by_hand))
    assert found == ["<|endoftext|>", "a", "ab", "abc", "aa", "aab", "b", "bc", "c", "ca"]


def test_or_under_its_right_part(by_hand):
    found = named(vocab_order("right_parent", by_hand))
    assert found == ["<|endoftext|>", "a", "aa", "ca", "b", "ab", "aab", "c", "bc", "abc"]


def test_gpt2_words_lie_beside_what_they_begin_with():
    tokenizer = load_tokenizer("gpt2")
    text = lambda i: tokenizer.backend.id_to_token(int(i))
    order = vocab_order("merge_tree", tokenizer)
    rank = np.argsort(order)
    after = [text(i) for i in order[rank[tokenizer.encode(" govern")[0]] :][:6]]
    assert all(token.startswith("Ġgovern") for token in after)
    assert after != [text(i) for i in range(tokenizer.encode(" govern")[0], 50257)][:6]
    ends = vocab_order("right_parent", tokenizer)
    assert sorted(ends) == list(range(50257)) and (ends != order).any()


@pytest.mark.parametrize("name", VOCAB_ORDERS)
def test_every_token_has_its_own_place_and_no_group_is_empty(name, by_hand):
    counts = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3])
    for slots in (1, 3, 4, 10):
        order = vocab_order(name, by_hand, counts=counts, seed=1)
        groups = VocabGroups.of(order, slots)
        np.testing.assert_array_equal(groups.order[groups.rank], np.arange(10))
        assert groups.num_groups == -(-10 // slots) == len(groups.sizes)
        assert groups.sizes.sum() == 10 and 1 <= groups.sizes.min() and groups.sizes.max() == slots
        assert (groups.sizes[:-1] == slots).all()
        for token in range(10):
            assert groups.members[groups.rank[token] // slots, groups.rank[token] % slots] == token


def test_orders_are_what_they_say(by_hand):
    counts = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3])
    assert vocab_order("frequency", by_hand, counts=counts).tolist() == [5, 7, 4, 8, 2, 0, 9, 6, 1, 3]
    small = (counts - 1).astype(np.uint8)  # has zeros, and no negative
    assert (vocab_order("frequency", by_hand, counts=small) == [5, 7, 4, 8, 2, 0, 9, 6, 1, 3]).all()
    assert vocab_order("merge_order", by_hand).tolist() == list(range(10))
    draws = [vocab_order("random", by_hand, seed=seed).tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize(
    ("counts", "shape"),
    [(None, "()"), (np.ones(9), "(9,)"), (np.ones(11), "(11,)"), (np.ones((10, 1)), "(10, 1)")],
)
def test_counts_are_of_every_id(by_hand, counts, shape):
    with pytest.raises(UserError, match=re.escape(f"counts has the shape {shape}") + r".* \(10,\)"):
        vocab_order("frequency", by_hand, counts=counts)


def test_a_grown_vocabulary_keeps_every_place():
    groups = VocabGroups.of([2, 0, 4, 1, 3], 2, "mark")
    grown = groups.extended(8)
    assert grown.rank[:5].tolist() == groups.rank.tolist() and grown.rank[5:].tolist() == [5, 6, 7]
    assert (grown.slots, grown.tokenizer, grown.num_groups) == (2, "mark", 4)
    with pytest.raises(UserError, match="cannot shrink"):
        groups.extended(4)


def test_equality_is_by_content_and_arrays_cannot_be_changed():
    groups, again = VocabGroups.of([2, 0, 1], 2), VocabGroups.of(np.array([2, 0, 1]), 2)
    assert groups == again and len({groups, again}) == 1
    assert groups != VocabGroups.of([2, 1, 0], 2) and groups != VocabGroups.of([2, 0, 1], 3)
    for array in (groups.order, groups.rank, groups.members):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


@pytest.mark.parametrize(
    ("order", "slots", "sentence"),
    [
        ([0, 0, 2], 2, "must hold every id from 0 to 2 once"),
        ([0, 1, 2], 4, "groups of 4 tokens cannot be made of a vocabulary of 3"),
        ([0, 1, 2], 0, "groups of 0 tokens"),
    ],
)
def test_orders_that_cannot_be_cut_are_refused(order, slots, sentence):
    with pytest.raises(UserError, match=sentence):
        VocabGroups.of(order, slots)
    with pytest.raises(UserError, match="'merge_tree' is not a map"):
        VocabGroups.read("merge_tree")
