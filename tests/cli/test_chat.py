"""jaxllm chat: turns from a pipe, the template around them, answers to their ends, and what is refused."""

import io

import jax
import numpy as np
import pytest

from jaxllm import generate, models
from jaxllm.cli import chat
from jaxllm.errors import UserError
from jaxllm.generate.draw import Drawn
from tests.data.test_examples import CHATML, chat_tokenizer
from tests.models.random_params import random_params


@pytest.fixture
def talk(monkeypatch, capsys):
    """A function (lines, flags, answers) -> (what is printed, the prompts that the model reads).

    `said` lines are expected on stderr.
    """
    prompts = []

    def run(lines, *flags, answers=(), template=CHATML, context=120, said=0):
        tokenizer, left = chat_tokenizer(template), iter(answers)
        config = models.get_preset("llama-nano", vocab_size=tokenizer.vocab_size, context_length=context)

        class Script:
            def __init__(self, config, params, ids, *, eos_id, max_new_tokens, **options):
                assert set(eos_id) == {0, 2} and len(ids[0]) + max_new_tokens <= context + 1
                prompts.append(tokenizer.decode(ids[0]))
                self.drawn = tokenizer.encode(next(left)).tolist()

            def __iter__(self):
                for start in range(0, len(self.drawn), 5):
                    yield Drawn(np.array([self.drawn[start : start + 5]]), None, None)

            def cancel(self, rows):
                pass

        monkeypatch.setattr(generate.text, "stream", Script)
        monkeypatch.setattr(chat, "load_model_and_tokenizer", lambda *_, **options: (config, None, tokenizer))
        monkeypatch.setattr(chat.compilation_cache, "enable", lambda: None)
        typed = "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")
        stdin = io.TextIOWrapper(io.BytesIO(typed), encoding="utf-8", errors="surrogateescape")
        monkeypatch.setattr("sys.stdin", stdin)
        chat.main(["MODEL", *flags])
        captured = capsys.readouterr()
        assert captured.err.count("\n") == said
        return captured.out, prompts

    return run


def test_each_line_is_a_turn_and_its_answer_ends_where_the_template_ends_one(talk):
    printed, prompts = talk(
        ["Hi", "And in Japanese?", "", "not read"], "--system", "Be brief.",
        answers=["Hello!<|im_end|>more", "日本🙂<|im_end|>"], context=200,
    )  # fmt: skip
    assert printed == "Hello!\n日本🙂\n"
    begun = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert prompts == [
        begun,
        f"{begun}Hello!<|im_end|>\n<|im_start|>user\nAnd in Japanese?<|im_end|>\n<|im_start|>assistant\n",
    ]


def test_the_oldest_turns_are_forgotten_and_a_turn_that_is_too_long_is_left_out(talk):
    _, prompts = talk(["one " * 5, "two", "three"], answers=["a<|im_end|>"] * 3)
    assert ["one" in prompt for prompt in prompts] == [True, True, False]
    assert all("Be kind." in prompt for prompt in prompts) and "two" in prompts[2]
    printed, prompts = talk(["Hi", "x" * 200, "two"], answers=["a<|im_end|>"] * 2, context=160, said=1)
    assert printed == "a\na\n" and "Hi" in prompts[-1] and "two" in prompts[-1] and "xx" not in prompts[-1]


def test_a_byte_that_is_no_text_ends_no_conversation(talk):
    _, prompts = talk(["caf\udce9", "two"], answers=["a<|im_end|>"] * 2, context=200)
    assert "caf\ufffd" in prompts[0] and "two" in prompts[1]


def test_a_model_without_a_template_is_no_chat_model(talk):
    with pytest.raises(UserError, match="'MODEL' has no chat template, so it is no chat model"):
        talk(["Hi"], template=None)


@pytest.mark.slow
def test_a_model_answers_with_its_own_ids(monkeypatch, capsys):
    """Nothing scripted: greedy ids of a small random model, as `generate` draws them from the same prompt."""
    tokenizer = chat_tokenizer()
    config = models.get_preset("llama-nano", vocab_size=tokenizer.vocab_size, num_layers=1, context_length=96)
    params = random_params(config)
    monkeypatch.setattr(chat, "load_model_and_tokenizer", lambda *_, **options: (config, params, tokenizer))
    monkeypatch.setattr(chat.compilation_cache, "enable", lambda: None)
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n"))
    chat.main(["MODEL", "--temperature", "0", "--max-new-tokens", "6"])
    prompt = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.encode_marked(prompt)[0].tolist()
    for _ in range(6):
        padded = jax.numpy.array([ids + [0] * (80 - len(ids))])
        ids.append(int(models.apply(config, params, padded)[0, len(ids) - 1].argmax()))
        if ids[-1] in (0, 2):
            ids.pop()
            break
    answer = tokenizer.decode(ids)[len(prompt) :]
    assert capsys.readouterr().out == f"{answer}\n"
