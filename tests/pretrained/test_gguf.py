"""GGUF files: numbers, rotary order, tokenizer."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.benchmarks.fuzz_pretrained import write_gguf
from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.pretrained import from_pretrained
from jaxllm.pretrained.gguf_file import GgufFile, open_gguf
from jaxllm.pretrained.gguf_model import gguf_config
from jaxllm.pretrained.gguf_tokenizer import gguf_tokenizer
from jaxllm.pretrained.tensors import StoredTensor

from .conftest import FAMILIES, assert_same, make_params

gguf = pytest.importorskip("gguf")

UNTIED = dataclasses.replace(FAMILIES["llama"], tie_embeddings=False)
# The file does not say which layers have windows: llama.cpp knows that five in six do.
GEMMA = dataclasses.replace(FAMILIES["gemma3"], num_layers=6, windows=(5, 5, 5, 5, 5, 0))


@pytest.mark.parametrize("config", [FAMILIES["llama"], UNTIED, GEMMA], ids=["tied", "untied", "gemma3"])
def test_float32_is_exact(config, tmp_path):
    params = make_params(config)
    write_gguf(tmp_path / "model.gguf", config, params, kinds={})
    model = from_pretrained(tmp_path / "model.gguf")
    assert model.config == config
    assert_same(model.params, params)
    assert_same(from_pretrained(tmp_path).params, params)  # the folder of one such file


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "F16", "BF16"])
def test_quantised_tensors_equal_the_dequantised_reference(kind, tmp_path):
    config = dataclasses.replace(FAMILIES["llama"], head_dim=32, num_heads=2, num_kv_heads=1)
    params = make_params(config)
    ends = ["ffn_up.weight", "ffn_down.weight", "attn_q.weight", "token_embd.weight"]
    write_gguf(tmp_path / "model.gguf", config, params, kinds=dict.fromkeys(ends, kind))
    read = from_pretrained(tmp_path / "model.gguf").params
    one = gguf.GGMLQuantizationType[kind]

    def reference(weight):
        return gguf.quants.dequantize(gguf.quants.quantize(weight, one), one)

    up = np.asarray(params["layers"]["mlp"]["in"])
    for layer in range(config.num_layers):
        expected = reference(np.ascontiguousarray(up[layer].T))
        assert np.array_equal(read["layers"]["mlp"]["in"][layer].T, expected)
        assert 0 < np.abs(expected - up[layer].T).max() < 0.1
    assert np.array_equal(read["embed"]["tokens"], reference(np.asarray(params["embed"]["tokens"])))
    # Quantisation is by row, so the order of q's rows does not change their numbers.
    query = np.asarray(params["layers"]["attn"]["query"])[0].reshape(64, -1).T
    expected = reference(np.ascontiguousarray(query)).T.reshape(64, 2, 32)
    assert np.array_equal(read["layers"]["attn"]["query"][0], expected)


@pytest.mark.torch
@pytest.mark.parametrize("kinds", [{}, {"weight": "Q8_0", "norm.weight": None}], ids=["F32", "Q8_0"])
def test_logits_match_transformers_on_the_same_file(kinds, tmp_path, tokens):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    pytest.importorskip("accelerate")  # which transformers wants for GGUF
    if kinds:
        parts = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_gate", "ffn_down", "token_embd"]
        kinds = {f"{part}.weight": "Q8_0" for part in parts}
    config = UNTIED
    write_gguf(tmp_path / "model.gguf", config, make_params(config), kinds=kinds)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32
    )
    with torch.no_grad():
        expected = theirs.eval()(torch.from_numpy(tokens)).logits.numpy()
    model = from_pretrained(tmp_path)
    ours = jax.jit(lambda p: models.apply(model.config, p, tokens))(model.params)
    assert np.abs(ours).max() > 1
    assert np.abs(ours - expected).max() <= 1e-4


def header(**values):
    """A GgufFile whose header says the given tokenizer.ggml values."""
    return GgufFile("model.gguf", {f"tokenizer.ggml.{name}": value for name, value in values.items()}, {})


BYTES = ["!", "a", "b", "1", "2", "3", "Ġ"]


def byte_level(**values):
    tokens = [*BYTES, "ab", "12", "Ġ1", "Ġa", "<|endoftext|>"]
    merges = ["a b", "Ġ 1", "1 2", "Ġ a"]
    return gguf_tokenizer(header(model="gpt2", tokens=tokens, merges=merges, **values))


def pieces(tokenizer, text):
    return [tokenizer.backend.id_to_token(i) for i in tokenizer.encode(text)]


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("smollm", ["ab", "Ġ", "1", "2", "3"]),  # every digit alone
        ("gpt-2", ["ab", "Ġ1", "2", "3"]),
        ("llama-bpe", ["ab", "Ġ", "12", "3"]),  # digits by three, without the space
    ],
)
def test_the_pre_tokenizer_decides_about_digits(pre, expected):
    tokenizer = byte_level(pre=pre, token_type=np.array([1] * 11 + [3]))
    assert pieces(tokenizer, "ab 123") == expected
    assert tokenizer.decode(tokenizer.encode("ab 123!")) == "ab 123!"
    assert tokenizer.eos_id == 11
    assert 11 not in tokenizer.encode("a<|endoftext|>")  # text, not the end of it


def test_without_a_pre_tokenizer_text_is_cut_as_llama_cpp_does_and_that_is_said():
    with pytest.warns(UserWarning, match="does not say how its tokenizer cuts text .tokenizer.ggml.pre"):
        tokenizer = byte_level()
    # Digits by three, and without the space before them, which GPT-2 would join to them ("Ġ1").
    assert pieces(tokenizer, "ab!! 123123") == ["ab", "!", "!", "Ġ", "12", "3", "12", "3"]
    cuts = [piece for piece, _ in tokenizer.backend.pre_tokenizer.pre_tokenize_str("ab'll!? x  12345\n")]
    assert cuts == ["ab", "'", "ll", "!?", "Ġx", "Ġ", "Ġ", "123", "45", "Ċ"]


def test_ends_template_and_bos_come_from_the_header():
    tokens = [*BYTES, "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot|>"]
    said = dict(model="gpt2", pre="smollm", tokens=tokens, merges=[], token_type=np.array([1] * 7 + [3] * 4))
    file = header(**said, bos_token_id=8, eos_token_id=9, eot_token_id=10, add_bos_token=True)
    file.metadata["tokenizer.chat_template"] = "{{ messages }}"
    tokenizer = gguf_tokenizer(file)
    assert tokenizer.eos_id == 7 and tokenizer.stop_ids == (7, 9, 10)
    assert tokenizer.encode("a<|im_end|>").tolist() == [1, 9]
    assert tokenizer.encode_prompt("a").tolist() == [8, 1]
    assert tokenizer.companions.chat_template == "{{ messages }}"
    assert tokenizer.companions.generation == {"bos_token_id": 8, "eos_token_id": [9, 10]}
    assert gguf_tokenizer(header(**said, bos_token_id=8)).begin_ids == ()  # llama.cpp's default for this kind


def test_sentencepiece_begins_with_bos_unless_the_header_says_no():
    tokens = ["<unk>", "<s>", "</s>", "a", "▁a", "▁"]
    said = dict(model="llama", tokens=tokens, scores=np.zeros(6), token_type=np.array([2, 3, 3, 1, 1, 1]))
    assert gguf_tokenizer(header(**said)).encode_prompt("a").tolist() == [1, 4]
    assert gguf_tokenizer(header(**said, add_bos_token=False)).encode_prompt("a").tolist() == [4]


def test_an_unusual_end_token_comes_from_the_header():
    tokens = [*BYTES, "<|fin|>"]
    tokenizer = gguf_tokenizer(header(model="gpt2", pre="gpt-2", tokens=tokens, merges=[], eos_token_id=7))
    assert tokenizer.eos_id == 7


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (dict(model="t5", tokens=["a"]), "unknown tokenizer model 't5'"),
        (dict(model="gpt2", tokens=["a", "a"], merges=[]), "same token twice"),
        (dict(model="gpt2", tokens=["a", "b"], merges=["a b"], pre="gpt-2"), "does not join two tokens"),
        (dict(model="gpt2", tokens=["a", "b"], merges=["ab"], pre="gpt-2"), "does not join two tokens"),
        (dict(model="gpt2", tokens=["a"], merges=[], pre="pixtral"), "unknown pre-tokenizer 'pixtral'"),
        (dict(model="gpt2", tokens=["a"], pre="gpt-2"), "no value 'tokenizer.ggml.merges'"),
        (dict(model="gpt2", tokens=np.array([1])), r"tokenizer.ggml.tokens is array\(\[1\]\); expected list"),
        (dict(model="gpt2", tokens=["a"], merges=[], eos_token_id=9, pre="gpt-2"), "no end-of-text token"),
        (dict(model="llama", tokens=["a", "</s>"], scores=np.zeros(1)), "1 scores for 2 tokens"),
        (dict(model="llama", tokens=["a"], scores=np.array([np.nan])), "expected an array of numbers"),
        (dict(model="gpt2", tokens=["a"], token_type=np.array([1.5])), "expected an array of whole numbers"),
        (dict(model="gpt2", tokens=["a"], merges=[], eos_token_id=True, pre="gpt-2"), "True; expected int"),
        (dict(model="llama", tokens=["a" * 10**6]), "a token of more than 4096 characters"),
    ],
)
def test_a_tokenizer_that_contradicts_itself(values, sentence):
    with pytest.raises(UserError, match=sentence):
        gguf_tokenizer(header(**values))


@pytest.mark.torch
def test_sentencepiece_vocabularies_give_the_ids_of_transformers():
    mapping = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    kinds = [2, 3, 3] + [6] * 256
    words = ["▁t", "he", "▁the", "▁a", "in", "▁in", "er", "▁the" + "re", "re"]
    letters = "▁ theainrwo.,é"
    chars = sorted(set(letters) - {" "})
    tokens += words + chars
    kinds += [1] * (len(words) + len(chars))
    scores = [0.0] * 259 + [-float(i) for i in range(len(words) + len(chars))]
    ours = gguf_tokenizer(
        header(model="llama", tokens=tokens, scores=np.array(scores), token_type=np.array(kinds))
    )
    theirs, _ = mapping.convert_gguf_tokenizer(
        "llama", dict(tokenizer_type="llama", tokens=tokens, scores=scores, token_type=kinds)
    )
    for text in ("the inner there", "an  era, the end.", "né 日本 12", ""):
        assert ours.encode(text).tolist() == theirs.encode(text, add_special_tokens=False).ids, text
        assert ours.decode(ours.encode(text)) == text
    # SentencePiece and llama.cpp put a space before any text; transformers only before a word.
    assert pieces(ours, " there") == ["▁", "▁there"]
    assert ours.decode(ours.encode(" there")) == " there"
    assert ours.eos_id == 2


def test_only_llama_is_read(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "qwen2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match="unknown architecture 'qwen2'; Known: llama, gemma3"):
        from_pretrained(tmp_path / "model.gguf")


def test_a_part_of_a_model_is_refused():
    metadata = {"general.architecture": "llama", "split.count": 3}
    with pytest.raises(UserError, match="one of 3 parts of a model; join them"):
        gguf_config(GgufFile("model.gguf", metadata, {}))


def test_values_of_another_kind_are_refused():
    for architecture in (np.zeros(3), 7, None, ["llama"]):
        with pytest.raises(UserError, match="unknown architecture"):
            gguf_config(GgufFile("model.gguf", {"general.architecture": architecture}, {}))
    tensor = StoredTensor("token_embd.weight", (300, 64), "F32", "model.gguf", None)
    metadata = {"general.architecture": "llama", "split.count": np.zeros(3)} | {
        f"llama.{name}": np.ones(2)
        for name in ("context_length", "block_count", "embedding_length", "feed_forward_length",
                     "attention.head_count", "attention.layer_norm_rms_epsilon")
    }  # fmt: skip
    with pytest.raises(UserError, match=r"is array\(\[1., 1.\]\); it must be a whole number"):
        gguf_config(GgufFile("model.gguf", metadata, {"token_embd.weight": tensor}))


def test_unsupported_rotary_scaling_is_refused(tmp_path):
    config = FAMILIES["llama"]
    write_gguf(tmp_path / "model.gguf", config, make_params(config), rope__scaling__type="yarn")
    with pytest.raises(UserError, match="llama.rope.scaling.type is 'yarn', which is not supported"):
        from_pretrained(tmp_path / "model.gguf")


def test_the_header_reads_as_the_gguf_package_reads_it(tmp_path):
    config = FAMILIES["llama"]
    write_gguf(tmp_path / "model.gguf", config, make_params(config))
    ours, theirs = open_gguf(tmp_path / "model.gguf"), gguf.GGUFReader(tmp_path / "model.gguf")
    for name, field in theirs.fields.items():
        if not name.startswith("GGUF."):
            assert np.array_equal(ours.metadata[name], field.contents()), name
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(ours.tensors[tensor.name].read(), expected)
