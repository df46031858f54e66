"""T5, the first and 1.1, and Flan-T5: the first has no gates, and its head is the token table."""

from jaxllm.config import Count, CountOrZero, Positive, Size
from jaxllm.models.config import Layers
from jaxllm.models.encoder_decoder import EncoderDecoderConfig
from jaxllm.models.families.record import BYTES, THEIR_ACTIVATIONS, Family, Tensor, read_activation

_DISTANCES = ".block.0.layer.0.SelfAttention.relative_attention_bias.weight"


def _attention(ours: str, theirs: str) -> dict[str, Tensor]:
    names = {"query": "q", "key": "k", "value": "v", "out": "o"}
    return {f"{ours}/{name}": Tensor(f"{theirs}.{letter}.weight", True) for name, letter in names.items()}


def _block(ours: str, theirs: str, mlp_place: int) -> dict[str, Tensor]:
    layer, mlp = f"{theirs}.block.{{layer}}.layer.", f"{theirs}.block.{{layer}}.layer.{mlp_place}."
    return {
        f"{ours}/attn_norm/scale": Tensor(layer + "0.layer_norm.weight"),
        **_attention(f"{ours}/attn", layer + "0.SelfAttention"),
        f"{ours}/mlp_norm/scale": Tensor(mlp + "layer_norm.weight"),
        f"{ours}/mlp/gate": Tensor(mlp + "DenseReluDense.wi_0.weight", True),
        f"{ours}/mlp/in": Tensor(mlp + "DenseReluDense.wi_1.weight", True),
        f"{ours}/mlp/out": Tensor(mlp + "DenseReluDense.wo.weight", True),
    }


def _ungated(config: EncoderDecoderConfig) -> dict[str, Tensor]:
    """Return the places of the first T5's feed-forward blocks where they have other names."""
    names = {"encoder/layers": "encoder.block.{layer}.layer.1", "layers": "decoder.block.{layer}.layer.2"}
    places = {
        f"{ours}/mlp/in": Tensor(f"{theirs}.DenseReluDense.wi.weight", True) for ours, theirs in names.items()
    }
    return {} if config.gated_mlp else places


_TENSORS = {
    "embed/tokens": Tensor("shared.weight"),
    "encoder/distances": Tensor("encoder" + _DISTANCES, axes=("buckets", "heads")),
    **_block("encoder/layers", "encoder", 1),
    "encoder/final_norm/scale": Tensor("encoder.final_layer_norm.weight"),
    "distances": Tensor("decoder" + _DISTANCES, axes=("buckets", "heads")),
    **_block("layers", "decoder", 2),
    "layers/cross_norm/scale": Tensor("decoder.block.{layer}.layer.1.layer_norm.weight"),
    **_attention("layers/cross", "decoder.block.{layer}.layer.1.EncDecAttention"),
    "final_norm/scale": Tensor("decoder.final_layer_norm.weight"),
    "head/kernel": Tensor("lm_head.weight", True),
}


def _read(theirs):
    kind = theirs.get("feed_forward_proj", "relu")
    activation = kind.removeprefix("gated-")
    # As transformers does: the first T5 scaled its outputs, and its head was the token table.
    scaled = theirs.get("scale_decoder_outputs", theirs.get("tie_word_embeddings", True))
    return dict(
        vocab_size=theirs["vocab_size"],
        context_length=theirs.get("n_positions", 512),
        num_layers=theirs.get("num_decoder_layers", theirs["num_layers"]),
        num_encoder_layers=theirs["num_layers"],
        embed_dim=theirs["d_model"],
        num_heads=theirs["num_heads"],
        head_dim=theirs["d_kv"],
        mlp_dim=theirs["d_ff"],
        # As transformers has it: of a gate, "gelu" is the tanh approximation.
        activation="gelu_tanh" if kind == "gated-gelu" else read_activation({"act": activation}, "act"),
        gated_mlp=kind.startswith("gated-"),
        distance_buckets=theirs.get("relative_attention_num_buckets", 32),
        longest_distance=theirs.get("relative_attention_max_distance", 128),
        norm_eps=theirs.get("layer_norm_epsilon", 1e-6),
        start_id=theirs.get("decoder_start_token_id", 0),
        tie_embeddings=scaled,
        init_std=theirs.get("initializer_factor", 1.0),
    )


def _write(config):
    kind = "gated-" * config.gated_mlp + THEIR_ACTIVATIONS[config.activation]
    return dict(
        model_type="t5",
        architectures=["T5ForConditionalGeneration"],
        is_encoder_decoder=True,
        decoder_start_token_id=config.start_id,
        pad_token_id=0,
        vocab_size=config.vocab_size,
        n_positions=config.context_length,
        num_layers=config.num_encoder_layers,
        num_decoder_layers=config.num_layers,
        d_model=config.embed_dim,
        num_heads=config.num_heads,
        d_kv=config.head_dim,
        d_ff=config.mlp_dim,
        feed_forward_proj="gated-gelu" if kind == "gated-gelu_new" else kind,
        relative_attention_num_buckets=config.distance_buckets,
        relative_attention_max_distance=config.longest_distance,
        layer_norm_epsilon=config.norm_eps,
        tie_word_embeddings=config.tie_embeddings,
        initializer_factor=config.init_std,
    )


def _again(config, name, found):
    del config, name, found
    return True, "the table of tokens"


def _model(layers: int, width: int, heads: int, mlp: int, **rest) -> EncoderDecoderConfig:
    return EncoderDecoderConfig(num_layers=layers, embed_dim=width, num_heads=heads, mlp_dim=mlp, **rest)


_FIRST = dict(activation="relu", gated_mlp=False, tie_embeddings=True)


T5 = Family(
    name="t5",
    title="T5",
    config=EncoderDecoderConfig,
    tensors=_TENSORS,
    required=dict(
        vocab_size=Size, num_layers=Layers, d_model=Size, num_heads=Size, d_kv=Size, d_ff=Size,
    ),
    optional=dict(
        feed_forward_proj=str,
        num_decoder_layers=Layers, n_positions=Size, relative_attention_num_buckets=Count,
        relative_attention_max_distance=Count, layer_norm_epsilon=Positive, tie_word_embeddings=bool,
        scale_decoder_outputs=bool, initializer_factor=Positive,
        decoder_start_token_id=CountOrZero,
    ),
    read=_read,
    write=_write,
    other_tensors=_ungated,
    prefix="",
    # The table of tokens under two more names; a bias that transformers does not read.
    buffers={"embed_tokens.weight": _again, "EncDecAttention.relative_attention_bias.weight": _again},
    presets={
        "t5-small": _model(6, 512, 8, 2048, **_FIRST),
        "t5-base": _model(12, 768, 12, 3072, **_FIRST),
        "t5-large": _model(24, 1024, 16, 4096, **_FIRST),
        "flan-t5-small": _model(8, 512, 6, 1024),
        "flan-t5-base": _model(12, 768, 12, 2048),
        "flan-t5-large": _model(24, 1024, 16, 2816),
        "flan-t5-xl": _model(24, 2048, 32, 5120),
        "flan-t5-xxl": _model(24, 4096, 64, 10240),
        "t5-nano": _model(2, 64, 4, 128, head_dim=16, context_length=128, **BYTES),
    },
)  # fmt: skip
