"""GPT-NeoX, and Pythia, which is built like it."""

from functools import partial

from jaxllm.config import Fraction, Positive, Size
from jaxllm.models.config import Layers
from jaxllm.models.families.buffers import causal_mask, mask_fill, rotary_frequencies
from jaxllm.models.families.record import BYTES, THEIR_ACTIVATIONS, Family, Tensor, model, read_activation
from jaxllm.models.families.rope import check_rope, read_rope, rope_fields, write_rope_scaling

_LAYER = "gpt_neox.layers.{layer}."
_FUSED = [Tensor(_LAYER + "attention.query_key_value.weight", True, part, by_head=True) for part in range(3)]
_TENSORS = {
    "embed/tokens": Tensor("gpt_neox.embed_in.weight"),
    "layers/attn_norm/scale": Tensor(_LAYER + "input_layernorm.weight"),
    "layers/attn_norm/bias": Tensor(_LAYER + "input_layernorm.bias"),
    "layers/attn/query": _FUSED[0],
    "layers/attn/key": _FUSED[1],
    "layers/attn/value": _FUSED[2],
    "layers/attn/query_bias": Tensor(_LAYER + "attention.query_key_value.bias", part=0, by_head=True),
    "layers/attn/key_bias": Tensor(_LAYER + "attention.query_key_value.bias", part=1, by_head=True),
    "layers/attn/value_bias": Tensor(_LAYER + "attention.query_key_value.bias", part=2, by_head=True),
    "layers/attn/out": Tensor(_LAYER + "attention.dense.weight", True),
    "layers/attn/out_bias": Tensor(_LAYER + "attention.dense.bias"),
    "layers/mlp_norm/scale": Tensor(_LAYER + "post_attention_layernorm.weight"),
    "layers/mlp_norm/bias": Tensor(_LAYER + "post_attention_layernorm.bias"),
    "layers/mlp/in": Tensor(_LAYER + "mlp.dense_h_to_4h.weight", True),
    "layers/mlp/in_bias": Tensor(_LAYER + "mlp.dense_h_to_4h.bias"),
    "layers/mlp/out": Tensor(_LAYER + "mlp.dense_4h_to_h.weight", True),
    "layers/mlp/out_bias": Tensor(_LAYER + "mlp.dense_4h_to_h.bias"),
    "final_norm/scale": Tensor("gpt_neox.final_layer_norm.weight"),
    "final_norm/bias": Tensor("gpt_neox.final_layer_norm.bias"),
    "head/kernel": Tensor("embed_out.weight", True),
}


def _read(theirs):
    bias = theirs.get("attention_bias", True)
    fraction = rope_fields(theirs).get("partial_rotary_factor", theirs.get("rotary_pct", 0.25))
    return dict(
        vocab_size=theirs["vocab_size"],
        context_length=theirs["max_position_embeddings"],
        num_layers=theirs["num_hidden_layers"],
        embed_dim=theirs["hidden_size"],
        num_heads=theirs["num_attention_heads"],
        mlp_dim=theirs["intermediate_size"],
        activation=read_activation(theirs, "hidden_act"),
        norm_eps=theirs["layer_norm_eps"],
        qkv_bias=bias,
        out_bias=bias,
        parallel_residual=theirs.get("use_parallel_residual", True),
        position="rotary",
        rotary_fraction=fraction,
        **read_rope(theirs, "rotary_emb_base"),
        tie_embeddings=theirs.get("tie_word_embeddings", False),
        init_std=theirs.get("initializer_range", 0.02),
    )


def _write(config):
    return dict(
        model_type="gpt_neox",
        architectures=["GPTNeoXForCausalLM"],
        vocab_size=config.vocab_size,
        max_position_embeddings=config.context_length,
        num_hidden_layers=config.num_layers,
        hidden_size=config.embed_dim,
        num_attention_heads=config.num_heads,
        intermediate_size=config.mlp_dim,
        hidden_act=THEIR_ACTIVATIONS[config.activation],
        layer_norm_eps=config.norm_eps,
        attention_bias=config.qkv_bias,
        use_parallel_residual=config.parallel_residual,
        rotary_pct=config.rotary_fraction,
        rotary_emb_base=config.rope_theta,
        **write_rope_scaling(config),
        tie_word_embeddings=config.tie_embeddings,
        initializer_range=config.init_std,
    )


_NEOX = dict(
    activation="gelu", position="rotary", rotary_fraction=0.25, parallel_residual=True, tie_embeddings=False,
)  # fmt: skip
_PYTHIA = dict(**_NEOX, vocab_size=50304, context_length=2048)

GPT_NEOX = Family(
    name="gpt_neox",
    title="GPT-NeoX",
    tensors=_TENSORS,
    required=dict(
        vocab_size=Size, max_position_embeddings=Size, num_hidden_layers=Layers, hidden_size=Size,
        num_attention_heads=Size, intermediate_size=Size, hidden_act=str, layer_norm_eps=Positive,
    ),
    optional=dict(
        rotary_pct=Fraction, rotary_emb_base=Positive, use_parallel_residual=bool, attention_bias=bool,
        tie_word_embeddings=bool, initializer_range=Positive,
    ),
    read=_read,
    write=_write,
    check=partial(check_rope, partial=True),
    buffers={
        ".attention.bias": causal_mask, ".attention.masked_bias": mask_fill,
        "rotary_emb.inv_freq": rotary_frequencies,
    },
    presets={
        "pythia-70m": model(6, 512, 8, **_PYTHIA),
        "pythia-160m": model(12, 768, 12, **_PYTHIA),
        "pythia-410m": model(24, 1024, 16, **_PYTHIA),
        "pythia-1b": model(16, 2048, 8, **_PYTHIA),
        "pythia-1.4b": model(24, 2048, 16, **_PYTHIA),
        "pythia-2.8b": model(32, 2560, 32, **_PYTHIA),
        "pythia-6.9b": model(32, 4096, 32, **(_PYTHIA | dict(vocab_size=50432))),
        "pythia-12b": model(36, 5120, 40, **(_PYTHIA | dict(vocab_size=50688))),
        "pythia-nano": model(2, 64, 4, context_length=128, **_NEOX, **BYTES),
    },
)  # fmt: skip
