"""BOS, ends of turns, chat templates and byte fallback, on tokenizers of a few hundred ids."""

import json
import types

import numpy as np
import pytest

from jaxllm import data, generate
from jaxllm.cli import generate as cli
from jaxllm.data import bpe
from jaxllm.data.companions import Companions
from jaxllm.data.tokenizer import begin_ids, encode_prompt, start_id, stop_ids
from jaxllm.errors import UserError
from jaxllm.generate import stream_text
from jaxllm.generate.draw import Drawn
from jaxllm.pretrained import from_pretrained, save_pretrained

from .conftest import FAMILIES, make_params

MODEL = FAMILIES["llama"]

END = {"__type": "AddedToken", "content": "<|im_end|>"}
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
CHAT = "<|im_start|>user\nHi<|im_end|>\n"


def write_chat(folder):
    """Write the tokenizer of a chat model: ids 0 to 2 end a document, begin a turn and end one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir(exist_ok=True)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*special, *letters])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    backend.save(str(folder / "tokenizer.json"))
    config = {"eos_token": END, "chat_template": TEMPLATE, "auto_map": {"X": "x.py"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 258], "top_p": 0.9}')
    return folder


def write_sentencepiece(folder, bos=True, **config):
    """Write a BPE with byte fallback as Llama's: a mark for each space, one before every text, and BOS."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    folder.mkdir(exist_ok=True)
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "a")]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *"▁theand.é"]
    tokens += ["".join(merge) for merge in merges]
    vocab = {token: i for i, token in enumerate(tokens)}
    model = models.BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single=["<s>", "$A", "</s>"], special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.save(str(folder / "tokenizer.json"))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_a_turn_is_one_id_and_the_end_of_a_document_stays_text(tmp_path):
    tokenizer = data.load_tokenizer(write_chat(tmp_path / "chat"))
    letters = [tokenizer.backend.token_to_id(letter) for letter in ("u", "s", "e", "r", "Ċ", "H", "i")]
    ids = [1, *letters, 2, letters[4]]
    assert tokenizer.encode(CHAT).tolist() == ids == encode_prompt(tokenizer, CHAT)
    assert tokenizer.decode(ids) == CHAT
    assert 0 not in tokenizer.encode("a<|endoftext|>")
    assert tokenizer.decode(tokenizer.encode("a<|endoftext|>")) == "a<|endoftext|>"
    assert encode_prompt(tokenizer, "i<|endoftext|>") == [letters[-1], 0]
    assert encode_prompt(tokenizer, "") == [0]
    assert tokenizer.eos_id == 0 and stop_ids(tokenizer) == (0, 2, 258) and begin_ids(tokenizer) == ()
    assert start_id(tokenizer) == 0


def test_bos_comes_before_prompts_and_documents_where_the_tokenizer_asks(tmp_path):
    tokenizer = data.load_tokenizer(write_sentencepiece(tmp_path / "llama"))
    [the] = tokenizer.encode("the").tolist()
    assert encode_prompt(tokenizer, "the") == [1, the] == encode_prompt(tokenizer, "<s>the")[:1] + [the]
    assert encode_prompt(tokenizer, "") == [1] == [start_id(tokenizer)]
    (tmp_path / "a.jsonl").write_text('{"text": "the"}\n{"text": "the the"}\n')
    corpus = data.prepare(tmp_path / "a.jsonl", tokenizer, seq_len=2, valid_fraction=0.3, cache_dir=tmp_path)
    documents = [corpus.train.document(0).tolist(), corpus.valid.document(0).tolist()]
    assert sorted(documents) == [[1, the, 2], [1, the, the, 2]]
    assert data.load_tokenizer("gpt2").encode_prompt("the").tolist() == [1169]


@pytest.mark.parametrize(
    ("bos", "add", "begin"), [(True, False, ()), (False, True, (1,)), (True, True, (1,))]
)
def test_tokenizer_config_decides_about_bos(bos, add, begin, tmp_path):
    write_sentencepiece(tmp_path / "llama", bos=bos, add_bos_token=add, bos_token="<s>")
    tokenizer = data.load_tokenizer(tmp_path / "llama")
    assert begin_ids(tokenizer) == begin
    tokenizer.save(tmp_path / "again" / "tokenizer.json")
    again = data.load_tokenizer(tmp_path / "again")
    assert again.fingerprint == tokenizer.fingerprint and begin_ids(again) == begin


def test_a_text_that_grows_by_bytes_changes_in_its_last_character_only(tmp_path):
    tokenizer = data.load_tokenizer(write_sentencepiece(tmp_path / "llama"))
    text = "the 日本語 🙂🙂 né"
    ids = tokenizer.encode(text).tolist()
    assert len(ids) > 20 and tokenizer.decode(ids) == text
    for length in range(len(ids)):
        grown = tokenizer.decode(ids[:length])
        assert text.startswith(grown.removesuffix("\ufffd"))
    wrong = [*tokenizer.encode("日").tolist(), 3 + 0xFF, *tokenizer.encode("the").tolist()]
    assert tokenizer.decode(wrong) == "日\ufffd the"


def scripted(monkeypatch, rows):
    """Let the model draw these ids, five a call, up to an id that ends the row."""
    seen = {}

    class Script:
        def __init__(self, config, params, prompts, *, eos_id, **options):
            seen.update(prompts=prompts, eos_id=eos_id)
            self.cancel = lambda rows: None

        def __iter__(self):
            for start in range(0, len(rows[0]), 5):
                yield Drawn(np.array([row[start : start + 5] for row in rows]), None, None)

    monkeypatch.setattr(generate.text, "stream", Script)
    return seen


def test_a_continuation_keeps_its_space_and_stop_strings_match(tmp_path, monkeypatch):
    tokenizer = data.load_tokenizer(write_sentencepiece(tmp_path / "llama"))
    ids = tokenizer.encode("the and the.").tolist()
    seen = scripted(monkeypatch, [ids])
    pieces = [text for [text] in stream_text(MODEL, None, tokenizer, ["the"])]
    assert seen == {"prompts": [[1, *ids[:1]]], "eos_id": (2,)}
    assert pieces[-1] == " the and the."  # after a prompt; at the start of a document there is no space
    assert list(stream_text(MODEL, None, tokenizer, [""]))[-1] == ["the and the."]
    assert list(stream_text(MODEL, None, tokenizer, ["the"], stop=[" and"]))[-1] == [" the"]
    assert list(stream_text(MODEL, None, tokenizer, ["the"], stop=[" the"]))[-1] == [""]


def test_a_turn_that_ends_ends_the_text(tmp_path, monkeypatch):
    tokenizer = data.load_tokenizer(write_chat(tmp_path / "chat"))
    scripted(monkeypatch, [tokenizer.encode(f"Hello{end}more").tolist() for end in ("<|im_end|>", "!")])
    *_, texts = stream_text(MODEL, None, tokenizer, [CHAT, CHAT])
    assert texts == ["Hello", "Hello!more"]


@pytest.mark.parametrize("stop", [[], ["語 x", "."]])
def test_the_command_prints_every_character_once(stop, tmp_path, monkeypatch, capsys):
    tokenizer = data.load_tokenizer(write_sentencepiece(tmp_path / "llama"))
    text = "the 日本語 🙂 né the"
    scripted(monkeypatch, [tokenizer.encode(f"{text}.").tolist()])
    model = (MODEL, make_params(MODEL), tokenizer)
    monkeypatch.setattr(cli, "load_model_and_tokenizer", lambda *_, **options: model)
    monkeypatch.setattr(cli.compilation_cache, "enable", lambda: None)
    flags = [word for string in stop for word in ("--stop", string)]
    cli.main(["RUN", "--prompt", "né", *flags[:1], *stop])
    assert capsys.readouterr().out == f"né {text}{'' if stop else '.'}\n"


def test_template_ends_and_generation_config_survive_training_and_export(tmp_path):
    imported = data.load_tokenizer(write_chat(tmp_path / "chat"))
    imported.save(tmp_path / "run" / "tokenizer.json")  # as a training run keeps it
    config = FAMILIES["llama"]
    kept = data.load_tokenizer(tmp_path / "run")
    save_pretrained(tmp_path / "out", config, make_params(config), kept)
    exported = from_pretrained(tmp_path / "out").tokenizer
    for tokenizer in (imported, kept, exported):
        assert tokenizer.companions.chat_template == TEMPLATE
        assert stop_ids(tokenizer) == (0, 2, 258)
        assert tokenizer.companions.generation == {"eos_token_id": [2, 258], "top_p": 0.9}
        assert tokenizer.fingerprint == imported.fingerprint
    said = {name: json.loads((tmp_path / "out" / f"{name}.json").read_text())
            for name in ("config", "tokenizer_config")}  # fmt: skip
    assert said["config"]["eos_token_id"] == [2, 258]
    assert said["tokenizer_config"]["eos_token"] == END
    assert "auto_map" not in said["tokenizer_config"]  # code of another folder


def test_without_a_generation_config_the_models_config_tells_the_ends(tmp_path):
    write_chat(tmp_path / "chat")
    (tmp_path / "chat" / "generation_config.json").unlink()
    (tmp_path / "chat" / "tokenizer_config.json").unlink()
    (tmp_path / "chat" / "config.json").write_text('{"eos_token_id": 2, "model_type": "llama"}')
    (tmp_path / "chat" / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = data.load_tokenizer(tmp_path / "chat")
    assert stop_ids(tokenizer) == (0, 2) and tokenizer.companions.chat_template == TEMPLATE
    assert tokenizer.companions.generation == {"eos_token_id": 2}


def test_of_several_templates_the_default_counts():
    templates = [{"name": "tools", "template": "no"}, {"name": "default", "template": TEMPLATE}]
    assert Companions({"chat_template": templates}).chat_template == TEMPLATE


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", "[" * 100_000, "tokenizer_config.json' is not JSON"),
        ("tokenizer_config.json", "[]", "holds no JSON object"),
        ("generation_config.json", '{"eos_token_id": "x"}', "expected an id, or a list of ids"),
        ("generation_config.json", '{"eos_token_id": [2, 999]}', "999 ends a text .* its ids end at 258"),
        ("tokenizer_config.json", '{"add_bos_token": true, "bos_token": "<z>"}', "asks for the token '<z>'"),
    ],
)
def test_damaged_companions_are_told_in_one_sentence(name, content, message, tmp_path):
    (write_chat(tmp_path / "chat") / name).write_text(content)
    with pytest.raises(UserError, match=message):
        data.load_tokenizer(tmp_path / "chat")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("model", "vocab"), []),
        (("post_processor", "special_tokens", "<s>", "ids"), [2**31]),
        (("post_processor", "special_tokens"), {}),
        (("added_tokens", 0, "id"), -1),
        (("normalizer", "normalizers", 1, "pattern"), {"Regex": "("}),
        (("decoder", "decoders", 0), {"type": "x" * 100_000}),
    ],
)
def test_a_damaged_tokenizer_is_told_in_one_sentence(place, value, tmp_path):
    folder = write_sentencepiece(tmp_path / "llama")
    content = json.loads((folder / "tokenizer.json").read_text())
    part = content
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        encode_prompt(data.load_tokenizer(folder), "the a")
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_a_panic_of_the_library_is_told_too():
    class Panic(BaseException):
        """As pyo3's: no Exception."""

    def panics(*args, **kwargs):
        raise Panic("index out of bounds\n")

    tokenizer = bpe.HuggingFaceTokenizer(types.SimpleNamespace(decode=panics, token_to_id=lambda _: None), 0)
    with pytest.raises(UserError, match="cannot decode ids: the tokenizers library says 'index out"):
        tokenizer.decode([1])


@pytest.mark.torch
@pytest.mark.parametrize("write", [write_chat, write_sentencepiece])
def test_prompts_get_the_ids_of_transformers(write, tmp_path):
    transformers = pytest.importorskip("transformers")
    write(tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").unlink(missing_ok=True)
    ours = data.load_tokenizer(tmp_path / "model")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "model")
    for text in (CHAT, "the end", "<s>é日", "a</s> the<|endoftext|>the"):
        expected = theirs(text).input_ids
        if write is write_sentencepiece:
            expected = expected[:-1]  # </s>, which a prompt that is to be continued must not have
            expected = expected[1:] if text.startswith("<s>") else expected  # BOS once, not twice
        assert encode_prompt(ours, text) == expected, text
