"""A run of an encoder-decoder on prompts and completions: learned, resumed, adapted, answered, scored."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import data, models
from jaxllm.adapt import LoraConfig
from jaxllm.cli import generate as command
from jaxllm.data.examples import Completion
from jaxllm.errors import UserError
from jaxllm.generate import SamplingConfig, generate_text
from jaxllm.optim import OptimConfig
from jaxllm.score import score_choices, score_examples, score_sequences
from jaxllm.text import TrainConfig, evaluate, load_run, prepare, train
from jaxllm.text.presets import TRAIN_PRESETS

ONE = jax.devices()[:1]
ROWS = [
    {"prompt": f"{a}", "completion": f"{a[::-1]}!"}
    for a in ("ab", "ba", "abc", "cab", "b", "acb", "ca", "cc")
]
GREEDY = SamplingConfig(temperature=0.0)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    model = models.get_preset("t5-nano", vocab_size=None, embed_dim=32, num_layers=1, mlp_dim=64)
    return TrainConfig(
        model=model, data=str(path), tokenizer="bytes", seq_len=6, batch_size=4, steps=4, eval_batches=0,
        eval_every=100, save_every=100, progress=False, out=str(tmp_path / "run"),
        optim=OptimConfig(learning_rate=3e-3, warmup_steps=5, schedule="constant"),
    )  # fmt: skip


def test_the_loss_is_that_of_each_answer_alone(config):
    run = prepare(config, devices=ONE)
    params = run.init(jax.random.key(1)).params
    found = evaluate(run, params)
    valid, held_out = run.corpus.valid, []
    for number in range(valid.num_documents):
        source, answer, _ = run.corpus.tokenizer.decode(valid.document(number)).split("<|endoftext|>")
        assert answer == f"{source[::-1]}!"
        held_out.append((source, answer))
    assert held_out
    apply = jax.jit(
        lambda s, t: models.apply(run.model, params, t, context=models.encode(run.model, params, s))
    )
    total, count = 0.0, 0
    for source, answer in held_out:
        ids = [0, *answer.encode(), 256]
        logits = np.asarray(
            apply(jnp.asarray([[*source.encode(), 256]]), jnp.asarray([ids[:-1]])), np.float64
        )[0]
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        total -= sum(log_probs[at, token] for at, token in enumerate(ids[1:]))
        count += len(ids) - 1
    np.testing.assert_allclose(found["loss"], total / count, rtol=1e-5)
    assert found["tokens"] == count
    given = [Completion(*pair) for pair in held_out]
    scored = score_examples(run.model, params, run.corpus.tokenizer, given)
    np.testing.assert_allclose(-sum(one.log_prob for one in scored), total, rtol=1e-5)
    # Answers that share a source: each has the probability that it has with a source of its own.
    sources = [[*source.encode(), 256] for source, _ in held_out]
    answers = [[*answer.encode(), 256] for _, answer in held_out]
    several = score_choices(run.model, params, sources, [[answer, [97], answer] for answer in answers])
    np.testing.assert_allclose([row[0].log_prob for row in several], [s.log_prob for s in scored], rtol=1e-5)
    with pytest.raises(UserError, match="says nothing of a text alone"):
        score_sequences(run.model, params, [[1, 2]])


@pytest.mark.slow
def test_it_learns_goes_on_and_answers(config, capsys):
    long = dataclasses.replace(config, steps=220)
    train(long, devices=ONE)
    model, params, tokenizer = load_run(long.out)
    assert type(model) is models.EncoderDecoderConfig
    seen = prepare(long, devices=ONE).corpus.train
    pairs = [tokenizer.decode(seen.document(i)).split("<|endoftext|>")[:2] for i in range(seen.num_documents)]
    answers = generate_text(
        model, params, tokenizer, [s for s, _ in pairs], max_new_tokens=6, sampling=GREEDY
    )
    assert answers == [answer for _, answer in pairs]
    capsys.readouterr()
    command.main([long.out, "--prompt", pairs[0][0], "--temperature", "0", "--max-new-tokens", "6"])
    assert capsys.readouterr().out.strip() == pairs[0][1]  # the answer alone

    straight = train(dataclasses.replace(config, steps=6, out=config.out + "1"), devices=ONE)
    part = dataclasses.replace(config, steps=6, out=config.out + "2", stop_after=3)
    train(part, devices=ONE)
    resumed = train(dataclasses.replace(part, stop_after=0), devices=ONE)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, straight.params)


@pytest.mark.slow
def test_an_adapter_of_both_halves_and_of_attention_between_them(config):
    train(config, devices=ONE)
    lora = LoraConfig(rank=4, targets="query,value,cross_query,cross_value,encoder_query,encoder_value")
    adapted = dataclasses.replace(config, start=config.out, lora=lora, steps=30, out=config.out + "-lora")
    before = evaluate(prepare(config, devices=ONE), load_run(config.out)[1])["loss"]
    trained = train(adapted, devices=ONE)
    assert trained.evaluation["loss"] < before
    assert set(trained.params) == {"layers", "encoder"}
    merged = load_run(adapted.out)[1]
    np.testing.assert_allclose(
        evaluate(prepare(config, devices=ONE), merged)["loss"], trained.evaluation["loss"], rtol=1e-5
    )


def test_rows_hold_sources_and_answers_with_their_ends():
    source, answer = data.load_tokenizer("bytes"), Completion("ab", "c")
    ids, predicted = answer.encode_pair(source)
    assert ids.tolist() == [97, 98, 256, 99, 256] and predicted.tolist() == [False] * 3 + [True] * 2


def test_what_it_does_not_learn_from_or_fit_is_told(config, tmp_path):
    (tmp_path / "text.txt").write_text("no pairs\n" * 40)
    for changes, said in (
        (dict(data=str(tmp_path / "text.txt")), "holds text, and an encoder-decoder learns to answer"),
        (dict(seq_len=4), "examples .* are longer than seq_len 4 .* at least 5"),
    ):
        with pytest.raises(UserError, match=said):
            prepare(dataclasses.replace(config, **changes), devices=ONE)
    with pytest.raises(UserError, match="an encoder-decoder has two"):
        model = dataclasses.replace(config.model, remat="full")
        dataclasses.replace(config, model=model, offload="state")
    assert prepare(dataclasses.replace(config, seq_len=4, long_examples="skip"), devices=ONE).corpus
    assert TRAIN_PRESETS["flan-t5-small"]().tokenizer == "bpe:32128"
