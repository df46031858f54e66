"""A tokenizer.json from outside: what panics its library, or would fill the memory, is one sentence."""

import json

import pytest

from jaxllm import data
from jaxllm.data.embedded import sotu_addresses
from jaxllm.errors import UserError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    data.load_tokenizer("bpe:300", documents=[sotu_addresses()[0]["text"]]).save(path)
    return json.loads(path.read_text())


CASES = {
    "panics when it is read": (["normalizer"], {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    "panics at a prefix": (["model", "continuing_subword_prefix"], "A" * 100_000),
    "panics when it decodes": (["decoder"], {"type": "Strip", "content": "a", "start": 10**9, "stop": 10**9}),
    "fails when it encodes": (["model"], {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "z"}),
    "an id of two billions": (["model", "vocab", "!"], 2**31),
    "an added id of two billions": (["added_tokens", 0, "id"], 2**31),
    "one id for two tokens": (["model", "vocab", "!"], 7),
    "a list where a table was": (["model", "vocab"], ["a"]),
    "lines in a message": (["model", "type"], "two\nlines" * 10_000),
    "no model": (["model"], None),
}


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_tokenizer_is_one_sentence(case, whole, tmp_path, capfd):
    path, value = CASES[case]
    tree = json.loads(json.dumps(whole))
    node = tree
    for name in path[:-1]:
        node = node[name]
    node[path[-1]] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(UserError) as error:
        data.load_tokenizer(tmp_path)
    assert len(str(error.value)) < 600 and "\n" not in str(error.value) and "tokenizer" in str(error.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", "{", "", "\xff", '{"a":' * 5000])
def test_what_is_no_object_is_one_sentence(text, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="is not JSON|holds no JSON object"):
        data.load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
def test_what_lies_beside_it_is_read_with_the_same_care(name, whole, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    for text in ("[" * 100_000, "[1]", "\x00"):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=f"{name}' is not JSON|{name}' holds no JSON object"):
            data.load_tokenizer(tmp_path)
    (tmp_path / name).write_text(json.dumps({"chat_template": [{"name": ["x"]}, 3]}))
    assert data.load_tokenizer(tmp_path).companions.chat_template is None
