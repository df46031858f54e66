"""jaxllm generate: where prompts come from, where answers go, and what is refused before a model is read."""

import io
import json

import jax
import jax.numpy as jnp
import pytest

from jaxllm import data, models
from jaxllm.cli import generate, prompts
from jaxllm.errors import UserError
from jaxllm.generate import generate_text
from tests.data.test_examples import chat_tokenizer
from tests.models.random_params import random_params


@pytest.fixture(scope="module")
def plain():
    config = models.get_preset(
        "gpt2-nano", vocab_size=257, embed_dim=16, num_heads=2, num_layers=1, context_length=64
    )
    return config, random_params(config), data.load_tokenizer("bytes")


@pytest.fixture(scope="module")
def chatty():
    tokenizer = chat_tokenizer()
    config = models.get_preset("llama-nano", vocab_size=tokenizer.vocab_size, num_layers=1, context_length=96)
    return config, random_params(config), tokenizer


@pytest.fixture
def command(monkeypatch, capsys):
    """A function (model, flags, typed) -> what the command prints."""

    def run(model, *flags, typed=""):
        monkeypatch.setattr(generate, "load_model_and_tokenizer", lambda *_, **options: model)
        monkeypatch.setattr(generate.compilation_cache, "enable", lambda: None)
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        generate.main(["MODEL", "--temperature", "0", "--max-new-tokens", "5", *flags])
        return capsys.readouterr().out

    return run


def greedy(model, *prompts):
    sampling = generate.SamplingConfig(temperature=0)
    return generate_text(*model, list(prompts), max_new_tokens=5, sampling=sampling)


def test_a_prompt_comes_from_a_flag_a_file_a_pipe_or_the_keyboard(command, plain, tmp_path):
    [once], [naive] = greedy(plain, "Once"), greedy(plain, "naïve")
    assert command(plain, "--prompt", "Once") == f"Once{once}\n"
    (tmp_path / "prompt.txt").write_text("Once\n")
    assert command(plain, "--prompt-file", str(tmp_path / "prompt.txt")) == f"Once{once}\n"
    assert command(plain, "--prompt-file", "-", typed="naïve\n") == f"naïve{naive}\n"
    assert command(plain, "--interactive", typed="Once\nnaïve\n\nnot read\n") == f"{once}\n{naive}\n"


def test_many_prompts_are_answered_by_lines_of_json(command, plain, tmp_path):
    """More than are drawn at once, each several times; what a row held goes along."""
    rows = [{"prompt": chr(97 + n) * (1 + n % 5), "id": n} for n in range(10)]
    rows[2] |= {"completion": "gold"}
    source, out = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    source.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    assert command(plain, "--prompt-file", str(source), "--out", str(out), "--samples", "2") == ""
    texts = greedy(plain, *(row["prompt"] for row in rows))
    want = [row | {"completion": text} for row, text in zip(rows, texts, strict=True) for _ in range(2)]
    want[4] |= {"reference": "gold"}
    want[5] |= {"reference": "gold"}
    assert [json.loads(line) for line in out.read_text().splitlines()] == want
    printed = command(plain, "--prompt-file", str(source))
    assert [json.loads(line) for line in printed.splitlines()] == want[::2]


def test_a_chat_model_answers_its_template(command, chatty, tmp_path):
    prompt = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    ids = chatty[2].encode_marked(prompt)[0].tolist()
    [answer] = greedy(chatty, ids)
    assert command(chatty, "--chat", "--prompt", "Hi") == f"{answer}\n"
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    rows = [{"messages": said}, {"messages": said[:1]}, {"prompt": "Hi"}]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    printed = command(chatty, "--chat", "--prompt-file", str(tmp_path / "talks.jsonl"))
    answers = [json.loads(line) for line in printed.splitlines()]
    assert answers[0] == {"messages": said[:1], "reference": "Hello!", "completion": answer}
    assert [one["completion"] for one in answers[1:]] == [answer, answer]


def test_the_type_of_numbers_is_as_asked(plain, monkeypatch):
    config, params, _ = generate.with_dtype(*plain, "bfloat16")
    assert (config.dtype, config.param_dtype) == ("bfloat16", "bfloat16")
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    assert generate.with_dtype(*plain, None) == plain


@pytest.mark.parametrize("words, message", [
    (["--prompt", "a", "--interactive"], "^prompt and interactive each say what to continue; give one"),
    (["--prompt", "a", "--prompt-file", "b"], "prompt and prompt_file each say"),
    (["--interactive", "--out", "a.jsonl"], "out is of prompts that are there already"),
    (["--out", "."], r"out is '\.'; it must be the name of a file"),
    (["--prompt-file", "/nowhere.txt"], "there is no file '/nowhere.txt' with prompts"),
    (["--dtype", "float8"], "unknown dtype 'float8'; did you mean"),
    (["--greedy"], "unknown option '--greedy'; the temperature is --temperature, and 0 is greedy"),
])  # fmt: skip
def test_mistakes_are_told_before_a_model_is_read(words, message, monkeypatch):
    monkeypatch.setattr(generate, "load_model_and_tokenizer", lambda *_, **options: pytest.fail("was read"))
    with pytest.raises(UserError, match=message):
        generate.main(["MODEL", *words])


@pytest.mark.parametrize("text, message", [
    ("", "holds no prompts"),
    ("{", "line 1 of .* is not JSON"),
    ('{"prompt": "a"}\n{"text": "b"}', "line 2 of .* holds .*expected an object with a text 'prompt'"),
    ('{"messages": [{"role": "user"}]}', "line 1 of .* expected an object"),
    ('{"messages": [{"role": "user", "content": "Hi"}]}', "the model has no chat template"),
])  # fmt: skip
def test_a_line_without_a_prompt_is_named(text, message, command, plain, tmp_path):
    (tmp_path / "prompts.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        command(plain, "--prompt-file", str(tmp_path / "prompts.jsonl"))


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "bom"])
def test_prompts_are_the_rows_that_training_reads(mark, plain, tmp_path):
    """A line ends with \\n, and not with the other characters that Unicode calls an end."""
    texts = ["one\u2028two", "three\x85four", "five\u2029six"]
    path = tmp_path / "prompts.jsonl"
    rows = (json.dumps({"prompt": text}, ensure_ascii=False) + "\r\n" for text in texts)
    path.write_bytes((mark + "".join(rows)).encode())
    reader = prompts.Reader(plain[2], chat=False, name="MODEL")
    assert [one.content for one in prompts.read_prompts(str(path), reader)] == texts
    assert list(data.read_documents(path, "prompt")) == texts
    path.with_suffix(".txt").write_bytes((mark + texts[0]).encode())
    assert prompts.read_prompts(str(path.with_suffix(".txt")), reader)[0].content == texts[0]


def test_a_model_without_a_template_is_no_chat_model(command, plain):
    with pytest.raises(UserError, match="'MODEL' has no chat template, so it is no chat model"):
        command(plain, "--chat", "--prompt", "Hi")


def test_a_growing_text_is_shown_without_pieces_of_characters():
    """Llama's byte tokens come as one U+FFFD each, up to three, before the fourth makes the character."""
    growing = ["a", "a\ufffd", "a\ufffd\ufffd", "a\ufffd\ufffd\ufffd", "a🙂", "a🙂b"]
    assert list(generate.settled(growing)) == ["a", "🙂", "b"]
