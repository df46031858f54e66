"""Runs with groups: made from the tokenizer, saved, resumed, refused where they do not fit."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.text import prepare, train
from jaxllm.text.load import load_run
from jaxllm.vocabulary import vocab_order


@pytest.fixture
def grouped(tiny):
    return tiny(tokenizer="bpe:280", vocab_groups="merge_tree:20", steps=2)


@pytest.mark.slow
def test_a_run_makes_its_groups_and_keeps_them(grouped):
    one = jax.devices()[:1]
    trained = train(grouped, devices=one)
    config, params, tokenizer = load_run(grouped.out)
    assert config.vocab_groups.slots == 20
    np.testing.assert_array_equal(config.vocab_groups.order, vocab_order("merge_tree", tokenizer))
    jax.tree.map(np.testing.assert_array_equal, params, trained.params)
    assert "groups" in params["head"]
    with pytest.raises(UserError, match=r"model.vocab_groups=\S+, this run asks for .*same value") as error:
        train(dataclasses.replace(grouped, vocab_groups="random:20"), devices=one)
    assert len(str(error.value)) < 500


def test_groups_of_another_tokenizer_are_refused(grouped):
    made = prepare(grouped).config.model
    other = dataclasses.replace(grouped, vocab_groups=None, model=made, tokenizer="bpe:270")
    with pytest.raises(UserError, match="another tokenizer than 'bpe:270'"):
        prepare(other)
    assert prepare(dataclasses.replace(other, tokenizer="bpe:280")).config.model == made
    with pytest.raises(UserError, match="another tokenizer than vocab_size=300"):
        dataclasses.replace(made, vocab_size=300)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("merge_trees", "unknown order of the vocabulary 'merge_trees'; did you mean 'merge_tree'"),
        ("merge_tree:", "'merge_tree:' has '' where the number of tokens of a group"),
        ("merge_order:281", "groups of 281 tokens cannot be made of a vocabulary of 280"),
        ("merge_order:0", "groups of 0 tokens cannot"),
    ],
)
def test_maps_that_cannot_be_are_one_sentence(grouped, spec, sentence):
    with pytest.raises(UserError, match=sentence):
        prepare(dataclasses.replace(grouped, vocab_groups=spec))


def test_a_tree_needs_merges(tiny):
    with pytest.raises(UserError, match="'right_parent' needs the merges of a BPE tokenizer"):
        prepare(tiny(tokenizer="bytes", vocab_groups="right_parent"))


def test_a_vocabulary_larger_than_the_tokenizer_is_covered(grouped):
    config = dataclasses.replace(grouped, model=dataclasses.replace(grouped.model, vocab_size=300))
    groups = prepare(config).config.model.vocab_groups
    assert groups.vocab_size == 300 and groups.order[280:].tolist() == list(range(280, 300))


def test_frequency_puts_the_commonest_first(grouped):
    job = prepare(dataclasses.replace(grouped, vocab_groups="frequency"))
    counts = np.bincount(job.corpus.train.ids, minlength=280)[job.model.vocab_groups.order]
    assert (np.diff(counts) <= 0).all() and counts[0] > counts[-1]


def test_z_loss_is_refused(grouped):
    with pytest.raises(UserError, match="z_loss=0.1 is of one softmax"):
        job = prepare(dataclasses.replace(grouped, z_loss=0.1))
        jax.eval_shape(job.train_step, job.shapes, job.batch_shapes)
