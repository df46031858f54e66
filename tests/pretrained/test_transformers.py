"""Files that transformers writes give us its logits, and ours give it ours."""

import jax
import numpy as np
import pytest

from jaxllm import models
from jaxllm.pretrained import from_pretrained, save_pretrained
from jaxllm.pretrained.safetensors_file import open_safetensors

from .conftest import FAMILIES, make_params

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch

# Float32 on both sides; the difference is the order of summation.
TOLERANCE = 1e-4

GPT2 = dict(vocab_size=61, n_positions=32, n_embd=24, n_layer=3, n_head=3)
NEO = dict(
    vocab_size=61, max_position_embeddings=32, hidden_size=24, num_layers=4, num_heads=3,
    attention_types=[[["global", "local"], 2]], window_size=5,
)  # fmt: skip
LLAMA = dict(
    vocab_size=61, max_position_embeddings=32, hidden_size=24, intermediate_size=40,
    num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, rms_norm_eps=1e-5,
)  # fmt: skip
NEOX = dict(
    vocab_size=61, max_position_embeddings=32, hidden_size=24, intermediate_size=40, num_hidden_layers=3,
    num_attention_heads=3,
)  # fmt: skip
GEMMA = dict(
    vocab_size=61, max_position_embeddings=32, hidden_size=24, intermediate_size=40, num_hidden_layers=3,
    num_attention_heads=3, num_key_value_heads=1, head_dim=10, sliding_window=5, query_pre_attn_scalar=7,
    layer_types=["sliding_attention", "sliding_attention", "full_attention"],
)  # fmt: skip
LLAMA3 = dict(rope_parameters=dict(
    rope_type="llama3", rope_theta=50.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=32,
))  # fmt: skip
BIASED = dict(tie_word_embeddings=False, attention_bias=True, mlp_bias=True)
ROPE = dict(rope_parameters={"rope_type": "default", "rope_theta": 5e5})
CASES = {
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", GEMMA),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
    "gpt2-untied": ("GPT2LMHeadModel", "GPT2Config", GPT2 | dict(tie_word_embeddings=False)),
    "gpt2-base": ("GPT2Model", "GPT2Config", GPT2),
    "gpt_neo": ("GPTNeoForCausalLM", "GPTNeoConfig", NEO),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", NEOX),
    "llama-3": ("LlamaForCausalLM", "LlamaConfig", LLAMA | LLAMA3),
    "llama-tied": ("LlamaForCausalLM", "LlamaConfig", LLAMA | ROPE | dict(tie_word_embeddings=True)),
    "llama-untied-biased": ("LlamaForCausalLM", "LlamaConfig", LLAMA | BIASED),
}


def their_model(case, dtype=None):
    model_class, config_class, sizes = CASES[case]
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**sizes)).eval()
    with torch.no_grad():  # so that biases and gains matter, and scores are far from uniform
        for parameter in model.parameters():
            parameter.copy_(parameter + 0.1 * torch.randn_like(parameter))
    return model.to(dtype or torch.float32)


def their_logits(model, tokens):
    with torch.no_grad():
        output = model(torch.from_numpy(tokens))
    if not hasattr(output, "logits"):  # a base model: its head is the token table
        return (output.last_hidden_state @ model.wte.weight.detach().T).numpy()
    return output.logits.float().numpy()


def our_logits(model, tokens):
    return np.asarray(jax.jit(lambda p: models.apply(model.config, p, tokens))(model.params))


@pytest.mark.parametrize(
    ("case", "shard"), [*((case, "5GB") for case in CASES), ("gpt2-base", "10KB"), ("llama-tied", "10KB")]
)
def test_we_read_what_transformers_writes(case, shard, tmp_path):
    model = their_model(case)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "10KB")
    tokens = np.random.default_rng(0).integers(0, 61, (3, 17))
    ours = our_logits(from_pretrained(tmp_path), tokens)
    assert np.abs(ours).max() > 1  # a comparison of zeros would prove nothing
    difference = np.abs(ours - their_logits(model, tokens)).max()
    assert difference <= TOLERANCE, difference


@pytest.mark.parametrize("case", ["gpt2", "llama-untied-biased"])
def test_we_read_bfloat16(case, tmp_path):
    model = their_model(case, torch.bfloat16)
    model.save_pretrained(tmp_path)
    dtypes = {tensor.dtype for tensor in open_safetensors(tmp_path / "model.safetensors").values()}
    assert dtypes == {"BF16"}
    tokens = np.random.default_rng(0).integers(0, 61, (2, 9))
    difference = np.abs(
        our_logits(from_pretrained(tmp_path), tokens) - their_logits(model.float(), tokens)
    ).max()
    assert difference <= TOLERANCE, difference


@pytest.mark.parametrize(
    ("name", "shard"), [*((name, "5GB") for name in FAMILIES), ("llama-untied-biased", "60KB")]
)
def test_transformers_reads_what_we_write(name, shard, tmp_path, tokenizer, tokens):
    config = FAMILIES[name]
    params = make_params(config)
    save_pretrained(tmp_path / "model", config, params, tokenizer, max_shard_size=shard)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert not any(info.values()), info
    ours = np.asarray(jax.jit(lambda p: models.apply(config, p, tokens))(params))
    difference = np.abs(ours - their_logits(theirs.eval(), tokens)).max()
    assert difference <= TOLERANCE, difference
    assert theirs.config.eos_token_id == tokenizer.eos_id


def test_transformers_reads_our_bfloat16_as_such(tmp_path):
    config = FAMILIES["llama"]
    params = jax.tree.map(lambda x: x.astype("bfloat16"), make_params(config))
    save_pretrained(tmp_path / "model", config, params)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert theirs.dtype == torch.bfloat16
    table = theirs.model.embed_tokens.weight.detach().float().numpy()
    assert np.array_equal(table, params["embed"]["tokens"].astype("float32"))


def test_transformers_reads_our_tokenizer(tmp_path, tokenizer):
    config = FAMILIES["llama"]
    save_pretrained(tmp_path / "model", config, make_params(config), tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    for text in ("Fellow-citizens of the Senate", " naïve 日本 1789\n\n 🙂", ""):
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text).tolist()
    assert theirs.eos_token_id == tokenizer.eos_id
