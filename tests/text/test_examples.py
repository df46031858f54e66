"""Runs on examples: the loss is that of the completions alone, packed or padded."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxllm import data, models, score
from jaxllm.errors import UserError
from jaxllm.text import evaluate, prepare

ONE = jax.devices()[:1]


@pytest.fixture
def examples(tiny, tmp_path):
    """A run's config on prompts and completions of several lengths, and the examples."""
    rows = [{"prompt": f"{i} + {i} = ", "completion": f"{2 * i}" * (1 + i % 3)} for i in range(30)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = models.get_preset("llama-nano", vocab_size=None, embed_dim=32, num_heads=4, num_kv_heads=2,
                              num_layers=1, context_length=32, attention_implementation="xla")  # fmt: skip
    return tiny(data=str(path), model=model, seq_len=24), rows


def test_packed_or_padded_the_loss_is_that_of_each_completion_alone(examples, capsys):
    config, rows = examples
    found = {}
    for packed in (True, False):
        run = prepare(dataclasses.replace(config, packed=packed), devices=ONE)
        params = run.init(jax.random.key(1)).params
        found[packed] = evaluate(run, params)
    said = capsys.readouterr().err
    assert f"data '{config.data}': prompt and completion, " in said and "tokens are predicted" in said

    valid, tokenizer = run.corpus.valid, run.corpus.tokenizer
    kept = {tokenizer.decode(valid.document(i)[:-1]) for i in range(valid.num_documents)}
    assert 2 <= len(kept) < len(rows)
    held_out = [row for row in rows if row["prompt"] + row["completion"] in kept]
    apply = jax.jit(lambda tokens: models.apply(run.model, params, tokens))
    total, tokens, size = 0.0, 0, 0
    for row in held_out:
        ids = [*(row["prompt"] + row["completion"]).encode(), 256]
        padded = np.zeros((1, 24), np.int32)
        padded[0, : len(ids)] = ids
        logits = np.asarray(apply(padded), np.float64)[0]
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        for at in range(len(row["prompt"]), len(ids)):
            total -= log_probs[at - 1, ids[at]]
        tokens, size = tokens + len(row["completion"]) + 1, size + len(row["completion"])
    for scores in found.values():
        assert scores["tokens"] == tokens
        np.testing.assert_allclose(scores["loss"], total / tokens, rtol=1e-5)
        np.testing.assert_allclose(scores["bits_per_byte"], total / size / np.log(2), rtol=1e-5)
    given = [data.examples.Completion(**row) for row in held_out]
    scored = score.score_examples(run.model, params, tokenizer, given)
    np.testing.assert_allclose(-sum(one.log_prob for one in scored), total, rtol=1e-5)
    assert sum(one.tokens for one in scored) == tokens and sum(one.bytes for one in scored) == size
    with pytest.raises(UserError, match="example 1 has 40 tokens, and the model's context is 32"):
        long = data.examples.Completion("x" * 30, "y" * 10)
        score.score_examples(run.model, params, tokenizer, [long])


def test_examples_that_are_left_out_are_counted(examples, capsys):
    config, rows = examples
    with open(config.data, "a") as file:
        file.write(json.dumps(rows[0] | {"prompt": "x" * 30}) + "\n")
    prepare(dataclasses.replace(config, long_examples="skip"), devices=ONE)
    assert "left out for being longer than seq_len 24: 1 examples" in capsys.readouterr().err


def test_documents_are_not_padded(tiny):
    with pytest.raises(UserError, match="packed=False is of examples, and .* holds documents"):
        prepare(tiny(packed=False), devices=ONE)
