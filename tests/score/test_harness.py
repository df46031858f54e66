"""What lm-evaluation-harness is answered: with room for what it asks, BOS where it belongs, fresh draws."""

import jax
import numpy as np
import pytest

from jaxllm import models
from jaxllm.data import bpe
from jaxllm.data.companions import Companions
from jaxllm.errors import UserError
from jaxllm.generate import SamplingConfig, generate_text
from tests.models.random_params import random_params

pytestmark = pytest.mark.torch  # the stage that installs lm_eval
Instance = pytest.importorskip("lm_eval.api.instance").Instance
harness = pytest.importorskip("jaxllm.score.harness")

TEXT = "hello world, what is this thing"
CONFIG = models.get_preset("gpt2-nano", vocab_size=270, num_layers=1, embed_dim=16, num_heads=2, mlp_dim=32,
                           context_length=32)  # fmt: skip
PARAMS = random_params(CONFIG, 0.5)
BOS = Companions({"add_bos_token": True, "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"})
TOKENIZER = bpe.from_json(bpe.train([TEXT] * 20, 270).backend.to_str(), "begins", BOS)
[BEGIN] = TOKENIZER.begin_ids


def ask(model, kind, *arguments):
    requests = [Instance(kind, {}, args, number) for number, args in enumerate(arguments)]
    return getattr(model, kind)(requests, disable_tqdm=True)


def test_a_prompt_is_what_leaves_room_for_the_answer(monkeypatch):
    prompts = []
    monkeypatch.setattr(harness, "generate_text", lambda c, p, t, some, **_: prompts.extend(some) or ["x"])
    model = harness.HarnessModel(CONFIG, PARAMS, TOKENIZER)
    long = " ".join([TEXT] * 9)
    whole = {text: [BEGIN, *TOKENIZER.encode(text).tolist()] for text in (TEXT, long)}
    for text, new, room in ((TEXT, 12, 20), (long, 12, 20), (long, 31, 1)):
        ask(model, "generate_until", (text, {"until": ["."], "max_gen_toks": new}))
        assert prompts.pop() == whole[text][-room:]
    for asked, new in (({"max_gen_toks": 32}, 32), ({}, 256)):
        with pytest.raises(UserError, match=f"asks for {new} new tokens.*context of 32;") as error:
            ask(model, "generate_until", (TEXT, {"until": ["."]} | asked))
        assert "\n" not in str(error.value) and not prompts


def test_log_likelihoods_are_of_what_follows_bos():
    model = harness.HarnessModel(CONFIG, PARAMS, TOKENIZER)
    encode = lambda text: TOKENIZER.encode(text).tolist()
    context, choice = encode("hello"), encode(" what")
    assert encode("hello what") == context + choice
    ids = np.array([[BEGIN, *context, *choice]])
    log_probs = np.asarray(jax.nn.log_softmax(models.apply(CONFIG, PARAMS, ids[:, :-1])))[0]
    each = log_probs[np.arange(len(log_probs)), ids[0, 1:]]
    pairs = [("hello", " what"), ("", "hello what"), ("<|endoftext|>hello", " what"), ("hello ", "what")]
    found = [answer[0] for answer in ask(model, "loglikelihood", *pairs)]
    expected = [each[len(context) :].sum(), each.sum(), *[each[len(context) :].sum()] * 2]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert model.tok_encode("hello", add_special_tokens=False) == context and model.tok_encode("") == [BEGIN]


def test_repeats_of_a_request_draw_anew_and_every_argument_is_read_or_refused():
    model = harness.HarnessModel(CONFIG, PARAMS, TOKENIZER)
    asked = {"until": ["zzz"], "do_sample": True, "temperature": 1.0, "max_gen_toks": 6}
    requests = [("hello", asked)] * 32
    drawn = ask(model, "generate_until", *requests)
    assert len({*drawn, *ask(model, "generate_until", *requests)}) > 56  # of 64; once 16
    again = ask(harness.HarnessModel(CONFIG, PARAMS, TOKENIZER), "generate_until", *requests)
    assert drawn == again

    greedy = {"until": ["zzz"], "max_gen_toks": 12, "num_beams": 1}
    [plain] = ask(model, "generate_until", ("hello", greedy))
    [fresh] = ask(model, "generate_until", ("hello", greedy | {"repetition_penalty": 100.0}))
    sampling = SamplingConfig(repetition_penalty=100.0, temperature=0.0)
    expected = generate_text(CONFIG, PARAMS, TOKENIZER, "hello", max_new_tokens=12, sampling=sampling)
    assert fresh == expected != plain
    with pytest.raises(UserError, match="unknown generation argument .typical_p.*temperature"):
        ask(model, "generate_until", ("hello", asked | {"typical_p": 0.9}))
