import json
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm import data
from jaxllm.data import bpe, embedded
from jaxllm.errors import UserError

TEXTS = [address["text"] for address in embedded.sotu_addresses()[:12]]
GOLDEN = "Hello world, tiny GPT", [15496, 995, 11, 7009, 402, 11571]


def random_strings(count: int) -> list[str]:
    """Return strings that mix ASCII, two-byte letters, the BMP and all of Unicode."""
    rng = random.Random(0)
    strings = []
    for _ in range(count):
        limits = rng.choices([0x80, 0x800, 0x10000, 0x110000], k=rng.randint(0, 40))
        codes = [rng.randrange(limit) for limit in limits]
        strings.append("".join(chr(c) for c in codes if not 0xD800 <= c < 0xE000))
    return strings


@pytest.fixture(scope="module")
def trained():
    return {
        "char": data.load_tokenizer("char", documents=TEXTS),
        "bpe": data.load_tokenizer("bpe:400", documents=TEXTS),
    }


@pytest.fixture(params=["gpt2", "bytes", "char", "bpe"])
def tokenizer(request, trained):
    return trained.get(request.param) or data.load_tokenizer(request.param)


@pytest.mark.smoke
def test_gpt2_golden_ids():
    text, ids = GOLDEN
    tokenizer = data.load_tokenizer("gpt2")
    assert tokenizer.encode(text).tolist() == ids
    assert tokenizer.decode(ids) == text
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (50257, 50256)


@pytest.mark.torch
def test_gpt2_gives_the_ids_of_tiktoken_on_random_unicode():
    tiktoken = pytest.importorskip("tiktoken")
    byte_of = {char: i for i, char in enumerate(embedded.byte_alphabet())}
    order = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order += [i for i in range(256) if i not in order]
    ranks = {
        bytes(order[byte_of[char]] for char in token): i
        for token, i in embedded.gpt2_vocabulary().items()
        if token != "<|endoftext|>"
    }
    theirs = tiktoken.Encoding(
        "gpt2",
        pat_str=r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": 50256},
    )
    strings = random_strings(10_000)
    ours = data.load_tokenizer("gpt2").encode_batch(strings)
    different = [
        text
        for text, ids in zip(strings, ours, strict=True)
        if ids.tolist() != theirs.encode_ordinary(text)
    ]
    assert not different, f"{len(different)} of 10,000, first {ascii(different[0])}"


@pytest.mark.torch
def test_gpt2_gives_the_ids_of_transformers_on_random_unicode(tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.json").write_text(json.dumps(embedded.gpt2_vocabulary()))
    (tmp_path / "merges.txt").write_bytes(embedded.read_asset("vocab.bpe"))
    theirs = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    strings = random_strings(10_000)
    ours = data.load_tokenizer("gpt2").encode_batch(strings)
    expected = theirs(strings)["input_ids"]
    different = [i for i, ids in enumerate(ours) if ids.tolist() != expected[i]]
    assert not different, f"{len(different)} of 10,000, first {ascii(strings[different[0]])}"


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_any_text_survives_the_round_trip(trained, text):
    for tokenizer in (data.load_tokenizer("gpt2"), data.load_tokenizer("bytes"), trained["bpe"]):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.eos_id not in ids


def test_char_keeps_its_alphabet_and_marks_the_rest_unknown(trained):
    char = trained["char"]
    assert char.decode(char.encode(TEXTS[0])) == TEXTS[0]
    ids = char.encode("a\u4e00z\U0010ffff~\0")
    assert ids[[1, 3, 4, 5]].tolist() == [char.unknown_id] * 4
    assert char.decode(ids) == "a\ufffdz\ufffd\ufffd\ufffd"
    assert char.vocab_size == len(set("".join(TEXTS))) + 2


def test_the_end_token_is_never_encoded_from_text(tokenizer):
    ids = tokenizer.encode("one<|endoftext|>two")
    assert tokenizer.eos_id not in ids
    if not hasattr(tokenizer, "unknown_id"):  # "|" is not in the alphabet of speeches.
        assert tokenizer.decode(ids) == "one<|endoftext|>two"
    assert tokenizer.decode([tokenizer.eos_id]) == "<|endoftext|>"


def test_ids_stay_below_vocab_size_and_past_it_decode_quietly(tokenizer):
    ids = tokenizer.encode(TEXTS[0])
    assert ids.min() >= 0 and ids.max() < tokenizer.vocab_size
    tokenizer.decode([tokenizer.vocab_size + 5])  # A model's vocabulary may be padded.


def test_a_saved_tokenizer_is_the_same_one(tokenizer, tmp_path):
    path = tmp_path / "new folder" / "tokenizer.json"
    tokenizer.save(path)
    assert [p.name for p in path.parent.iterdir()] == ["tokenizer.json"]
    for spec in (path, str(path.parent)):
        again = data.load_tokenizer(spec)
        assert again.fingerprint == tokenizer.fingerprint
        assert again.eos_id == tokenizer.eos_id
        assert again.encode(TEXTS[1]).tolist() == tokenizer.encode(TEXTS[1]).tolist()


def test_one_string_is_one_document():
    assert data.load_tokenizer("char", documents="ab").alphabet == "ab"


def test_fingerprints_differ(trained):
    others = [data.load_tokenizer("gpt2"), data.load_tokenizer("bytes")]
    others += [data.load_tokenizer("char", documents=["ab"]), *trained.values()]
    assert len({tokenizer.fingerprint for tokenizer in others}) == 5


@pytest.mark.smoke
def test_a_bpe_has_the_size_asked_for_and_merges_what_is_frequent(trained):
    assert trained["bpe"].vocab_size == 400
    assert len(trained["bpe"].encode(" the")) == 1


def test_bpe_training_is_the_same_in_another_process(trained):
    code = (
        "from jaxllm import data; from jaxllm.data import embedded; "
        "texts = [a['text'] for a in embedded.sotu_addresses()[:12]]; "
        "print(data.load_tokenizer('bpe:400', documents=texts).fingerprint)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == trained["bpe"].fingerprint


def test_a_foreign_tokenizer_json_without_its_padding_and_truncation(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(
        models.WordLevel({"<unk>": 0, "a": 1, "b": 2, "</s>": 7}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.enable_truncation(2)
    backend.enable_padding(length=5)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = data.load_tokenizer(tmp_path)
    assert tokenizer.encode("a b a").tolist() == [1, 2, 1]
    assert (tokenizer.eos_id, tokenizer.vocab_size) == (7, 8)  # Ids may have gaps.


def write(path, content):
    path.write_text(content)
    return path


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (lambda p: "gtp2", "unknown tokenizer 'gtp2'; did you mean 'gpt2'"),
        (lambda p: "bpe:many", "'bpe:many' needs a whole number of at least 257"),
        (lambda p: "bpe:100", "'bpe:100' needs a whole number of at least 257"),
        (lambda p: "char", "'char' is trained on text: pass documents="),
        (lambda p: p / "missing.json", "no tokenizer at '.*missing.json'; give the path"),
        (lambda p: p, "no tokenizer at '.*tokenizer.json'; give the path"),
        (lambda p: write(p / "x.json", "hello"), "x.json' is not JSON"),
        (lambda p: write(p / "x.json", "{}"), "x.json' is not a Hugging Face tokenizer.json"),
    ],
)
def test_bad_names_and_files_are_told_in_one_sentence(spec, message, tmp_path):
    with pytest.raises(UserError, match=message):
        data.load_tokenizer(spec(tmp_path))


def test_a_tokenizer_without_an_end_token_is_refused():
    content = json.dumps(
        {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}
    )
    with pytest.raises(UserError, match="'mine' has no end-of-text token"):
        bpe.from_json(content, "mine")


def test_too_little_text_for_the_size_says_how_much_there_is():
    with pytest.raises(UserError, match=r"too small for the tokenizer 'bpe:500'.*at most bpe:\d+"):
        data.load_tokenizer("bpe:500", documents=["a few words only"])


def test_a_text_of_several_tokens_is_no_single_one():
    assert data.single_token(data.load_tokenizer("bytes"), "A") == 65
    with pytest.raises(UserError, match="' A' is 2 tokens of this tokenizer, and must be one"):
        data.single_token(data.load_tokenizer("bytes"), " A")
