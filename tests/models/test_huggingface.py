"""Parity with transformers on tiny random models, and the mapping of weights and configs."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.models import huggingface
from jaxllm.models.families import FAMILIES
from jaxllm.models.huggingface_config import config_from_huggingface, config_to_huggingface

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
WIDE = LLAMA | dict(hidden_size=48, num_attention_heads=3, num_key_value_heads=1)  # heads of 16
LLAMA3 = dict(
    rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=32,
)  # fmt: skip
GEMMA = dict(
    vocab_size=61, max_position_embeddings=64, hidden_size=24, intermediate_size=40, num_hidden_layers=6,
    num_attention_heads=3, num_key_value_heads=1, head_dim=10, sliding_window=5, query_pre_attn_scalar=7,
    pad_token_id=None,  # torch gives the padding token's row of the table no gradient
)  # fmt: skip
MAMBA = dict(vocab_size=61, hidden_size=20, state_size=5, num_hidden_layers=3, conv_kernel=3)
CASES = {
    "gemma3": ("Gemma3", GEMMA),
    "gemma3-untied-biased": (
        "Gemma3",
        GEMMA
        | dict(
            num_hidden_layers=3,
            layer_types=["full_attention", "sliding_attention", "full_attention"],
            tie_word_embeddings=False,
            attention_bias=True,
            rope_parameters=dict(
                full_attention=dict(rope_type="linear", factor=4.0, rope_theta=90.0),
                sliding_attention=dict(rope_type="default", rope_theta=20.0),
            ),
        ),
    ),
    "gpt_neox": ("GPTNeoX", NEOX),
    "gpt_neox-serial": (
        "GPTNeoX",
        NEOX
        | dict(
            use_parallel_residual=False,
            attention_bias=False,
            tie_word_embeddings=True,
            rope_parameters=dict(rope_type="linear", factor=3.0, rope_theta=100.0, partial_rotary_factor=0.5),
        ),
    ),
    "llama-3": ("Llama", WIDE | dict(rope_parameters=LLAMA3)),
    "llama-linear": ("Llama", WIDE | dict(rope_parameters=dict(rope_type="linear", factor=2.0))),
    "gpt2": ("GPT2", GPT2),
    "gpt_neo": ("GPTNeo", NEO),
    "llama-tied": ("Llama", LLAMA | dict(tie_word_embeddings=True)),
    "mamba": ("Mamba", MAMBA),
    "mamba-untied-biased": (
        "Mamba",
        MAMBA | dict(use_bias=True, use_conv_bias=False, tie_word_embeddings=False, time_step_rank=2),
    ),
    "llama-untied-biased": (
        "Llama",
        LLAMA | dict(tie_word_embeddings=False, attention_bias=True, mlp_bias=True),
    ),
}


def in_files(model, name):
    """Return what checkpoints call a tensor: transformers 5 calls GPT-NeoX's head lm_head in memory."""
    return name.replace("lm_head.", "embed_out.") if model.config.model_type == "gpt_neox" else name


def offset(family, name):
    """Return what our parameter is more than theirs."""
    places = {place.name: place.offset for place in FAMILIES[family].tensors.values()}
    return places[re.sub(r"\.\d+\.", ".{layer}.", name, count=1)]


def theirs_and_ours(case):
    """Return (torch model in eval mode, our config, our params) with the same random weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    family, sizes = CASES[case]
    kind = "TextConfig" if family == "Gemma3" else "Config"
    hf_config = getattr(transformers, family + kind)(**sizes)
    suffix = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
    torch.manual_seed(0)
    model = getattr(transformers, family + suffix)(hf_config).eval()
    with torch.no_grad():  # so that biases and gains matter, and scores are far from uniform
        for parameter in model.parameters():
            parameter.copy_(parameter + 0.1 * torch.randn_like(parameter))
    config = config_from_huggingface(hf_config.to_dict())
    state = {in_files(model, name): tensor.numpy() for name, tensor in model.state_dict().items()}
    return model, config, huggingface.params_from_state_dict(config, hf_config.model_type, state)


@pytest.mark.torch
@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_match_transformers(case):
    model, config, params = theirs_and_ours(case)
    import torch

    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (3, 17))
    targets = np.roll(tokens, -1, axis=1)
    logits = model(torch.from_numpy(tokens)).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten()).backward()

    ours = jax.jit(lambda p: models.apply(config, p, tokens))(params)
    assert np.abs(ours - logits.detach().numpy()).max() <= TOLERANCE
    assert np.abs(ours).max() > 1  # a comparison of zeros would prove nothing

    gradients = jax.jit(jax.grad(lambda p: models.loss(config, p, tokens, targets)[0]))(params)
    family = model.config.model_type
    ours = huggingface.state_dict_from_params(config, family, gradients)
    for name, parameter in model.named_parameters():
        gradient = np.asarray(ours[in_files(model, name)]) + offset(family, in_files(model, name))
        difference = np.abs(gradient - parameter.grad.numpy()).max()
        assert difference <= TOLERANCE, f"{name}: {difference}"


@pytest.mark.torch
@pytest.mark.parametrize("case", CASES)
def test_state_dict_round_trip_is_exact(case):
    model, config, params = theirs_and_ours(case)
    back = huggingface.state_dict_from_params(config, model.config.model_type, params)
    for name, tensor in model.state_dict().items():
        # What is stored less 1 comes back within the last bit of the gain; all else as it was.
        rounded = 2**-23 * abs(offset(model.config.model_type, in_files(model, name)))
        difference = np.abs(back[in_files(model, name)] - tensor.numpy()).max()
        assert difference <= rounded, f"{name}: {difference}"


@pytest.mark.torch
def test_importing_a_truncated_checkpoint_names_the_missing_tensor():
    model, config, _ = theirs_and_ours("gpt2")
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    del state["transformer.h.1.mlp.c_fc.bias"]
    with pytest.raises(UserError, match=r"transformer\.h\.1\.mlp\.c_fc\.bias"):
        huggingface.params_from_state_dict(config, "gpt2", state)


@pytest.mark.parametrize("name", [name for name in models.PRESETS if "-n" not in name[-5:]])
def test_config_round_trip(name):
    config = models.PRESETS[name]
    again = config_from_huggingface(config_to_huggingface(config))
    assert again == config


def test_a_model_no_family_can_hold_is_refused():
    config = dataclasses.replace(models.PRESETS["gpt2"], sink_logit=0.0)
    with pytest.raises(UserError, match="no Hugging Face family"):
        config_to_huggingface(config)


def test_a_parameter_without_a_place_is_refused():
    config = models.get_preset("gpt2-nano", sink_logit="learned")
    params = jax.tree.map(lambda x: jnp.zeros(x.shape), models.shapes(config))
    with pytest.raises(UserError, match="no place for parameter layers/attn/sink"):
        huggingface.state_dict_from_params(config, "gpt2", params)
