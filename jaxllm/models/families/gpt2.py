"""GPT-2."""

from jaxllm.config import Positive, Size
from jaxllm.errors import UserError
from jaxllm.models.config import Layers
from jaxllm.models.families.buffers import causal_mask, mask_fill
from jaxllm.models.families.record import BYTES, THEIR_ACTIVATIONS, Family, Tensor, model, read_activation

TENSORS = {
    "embed/tokens": Tensor("transformer.wte.weight"),
    "embed/positions": Tensor("transformer.wpe.weight"),
    "layers/attn_norm/scale": Tensor("transformer.h.{layer}.ln_1.weight"),
    "layers/attn_norm/bias": Tensor("transformer.h.{layer}.ln_1.bias"),
    "layers/attn/query": Tensor("transformer.h.{layer}.attn.c_attn.weight", part=0),
    "layers/attn/key": Tensor("transformer.h.{layer}.attn.c_attn.weight", part=1),
    "layers/attn/value": Tensor("transformer.h.{layer}.attn.c_attn.weight", part=2),
    "layers/attn/query_bias": Tensor("transformer.h.{layer}.attn.c_attn.bias", part=0),
    "layers/attn/key_bias": Tensor("transformer.h.{layer}.attn.c_attn.bias", part=1),
    "layers/attn/value_bias": Tensor("transformer.h.{layer}.attn.c_attn.bias", part=2),
    "layers/attn/out": Tensor("transformer.h.{layer}.attn.c_proj.weight"),
    "layers/attn/out_bias": Tensor("transformer.h.{layer}.attn.c_proj.bias"),
    "layers/mlp_norm/scale": Tensor("transformer.h.{layer}.ln_2.weight"),
    "layers/mlp_norm/bias": Tensor("transformer.h.{layer}.ln_2.bias"),
    "layers/mlp/in": Tensor("transformer.h.{layer}.mlp.c_fc.weight"),
    "layers/mlp/in_bias": Tensor("transformer.h.{layer}.mlp.c_fc.bias"),
    "layers/mlp/out": Tensor("transformer.h.{layer}.mlp.c_proj.weight"),
    "layers/mlp/out_bias": Tensor("transformer.h.{layer}.mlp.c_proj.bias"),
    "final_norm/scale": Tensor("transformer.ln_f.weight"),
    "final_norm/bias": Tensor("transformer.ln_f.bias"),
    "head/kernel": Tensor("lm_head.weight", output_first=True),
}


def _read(theirs):
    if theirs.get("scale_attn_by_inverse_layer_idx"):
        raise UserError("scale_attn_by_inverse_layer_idx is not supported")
    return dict(
        vocab_size=theirs["vocab_size"],
        context_length=theirs["n_positions"],
        num_layers=theirs["n_layer"],
        embed_dim=theirs["n_embd"],
        num_heads=theirs["n_head"],
        mlp_dim=theirs.get("n_inner"),
        activation=read_activation(theirs, "activation_function"),
        norm_eps=theirs["layer_norm_epsilon"],
        attention_scale=None if theirs.get("scale_attn_weights", True) else 1.0,
        tie_embeddings=theirs.get("tie_word_embeddings", True),
        init_std=theirs.get("initializer_range", 0.02),
    )


def _write(config):
    return dict(
        model_type="gpt2",
        architectures=["GPT2LMHeadModel"],
        vocab_size=config.vocab_size,
        n_positions=config.context_length,
        n_layer=config.num_layers,
        n_embd=config.embed_dim,
        n_head=config.num_heads,
        n_inner=config.mlp_dim,
        activation_function=THEIR_ACTIVATIONS[config.activation],
        layer_norm_epsilon=config.norm_eps,
        scale_attn_weights=config.attention_scale != 1.0,
        tie_word_embeddings=config.tie_embeddings,
        initializer_range=config.init_std,
    )


GPT2 = Family(
    name="gpt2",
    title="GPT-2",
    tensors=TENSORS,
    required=dict(
        vocab_size=Size, n_positions=Size, n_layer=Layers, n_embd=Size, n_head=Size,
        activation_function=str, layer_norm_epsilon=Positive,
    ),
    optional=dict(
        n_inner=Size, tie_word_embeddings=bool, initializer_range=Positive, scale_attn_weights=bool,
        scale_attn_by_inverse_layer_idx=bool,
    ),
    read=_read,
    write=_write,
    buffers={".attn.bias": causal_mask, ".attn.masked_bias": mask_fill},
    presets={
        "gpt2": model(12, 768, 12),
        "gpt2-medium": model(24, 1024, 16),
        "gpt2-large": model(36, 1280, 20),
        "gpt2-xl": model(48, 1600, 25),
        "gpt2-nano": model(2, 64, 2, context_length=128, **BYTES),
        "gpt2-micro": model(4, 128, 4, context_length=256, **BYTES),
        "gpt2-tiny": model(4, 256, 4, context_length=256, **BYTES),
        "gpt2-mini": model(6, 384, 6, context_length=256, **BYTES),
    },
)  # fmt: skip
