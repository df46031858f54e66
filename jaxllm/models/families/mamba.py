"""Mamba, as state-spaces published it for transformers."""

from jaxllm.config import Count, Positive, Size
from jaxllm.errors import UserError
from jaxllm.models.config import Layers
from jaxllm.models.families.record import BYTES, Family, Tensor
from jaxllm.models.mamba import MambaConfig

_LAYER = "backbone.layers.{layer}."
_MIXER = _LAYER + "mixer."
_TENSORS = {
    "embed/tokens": Tensor("backbone.embeddings.weight"),
    "layers/norm/scale": Tensor(_LAYER + "norm.weight"),
    "layers/mamba/in": Tensor(_MIXER + "in_proj.weight", True, part=0, parts=2),
    "layers/mamba/gate": Tensor(_MIXER + "in_proj.weight", True, part=1, parts=2),
    "layers/mamba/in_bias": Tensor(_MIXER + "in_proj.bias", part=0, parts=2),
    "layers/mamba/gate_bias": Tensor(_MIXER + "in_proj.bias", part=1, parts=2),
    "layers/mamba/conv": Tensor(_MIXER + "conv1d.weight", axes=("mlp", None, "taps")),
    "layers/mamba/conv_shift": Tensor(_MIXER + "conv1d.bias"),
    "layers/mamba/select": Tensor(_MIXER + "x_proj.weight", True),
    "layers/mamba/delta": Tensor(_MIXER + "dt_proj.weight", True),
    "layers/mamba/step_bias": Tensor(_MIXER + "dt_proj.bias"),
    "layers/mamba/A_log": Tensor(_MIXER + "A_log", axes=("mlp", "state")),
    "layers/mamba/skip": Tensor(_MIXER + "D"),
    "layers/mamba/out": Tensor(_MIXER + "out_proj.weight", True),
    "layers/mamba/out_bias": Tensor(_MIXER + "out_proj.bias"),
    "final_norm/scale": Tensor("backbone.norm_f.weight"),
    "head/kernel": Tensor("lm_head.weight", True),
}


def _check(theirs, source):
    if theirs.get("hidden_act", "silu") != "silu":
        raise UserError(f"{source}: hidden_act is {theirs['hidden_act']!r}; a Mamba here has silu alone")
    rank = theirs.get("time_step_rank", "auto")
    if rank != "auto" and not (isinstance(rank, int) and rank > 0):
        raise UserError(f"{source}: time_step_rank is {rank!r}; it must be a whole number, or auto")


def _read(theirs):
    width, rank = theirs["hidden_size"], theirs.get("time_step_rank", "auto")
    return dict(
        vocab_size=theirs["vocab_size"],
        context_length=theirs.get("max_position_embeddings", 2048),
        num_layers=theirs["num_hidden_layers"],
        embed_dim=width,
        inner_dim=int(theirs.get("expand", 2) * width),
        state_dim=theirs.get("state_size", 16),
        conv_width=theirs.get("conv_kernel", 4),
        delta_rank=None if rank == "auto" else rank,
        conv_bias=theirs.get("use_conv_bias", True),
        proj_bias=theirs.get("use_bias", False),
        norm_eps=theirs.get("layer_norm_epsilon", 1e-5),
        tie_embeddings=theirs.get("tie_word_embeddings", True),
        init_std=theirs.get("initializer_range", 0.1),
    )


def _write(config):
    expand = config.inner_dim / config.embed_dim
    return dict(
        model_type="mamba",
        architectures=["MambaForCausalLM"],
        vocab_size=config.vocab_size,
        max_position_embeddings=config.context_length,  # which transformers keeps and does not read
        num_hidden_layers=config.num_layers,
        hidden_size=config.embed_dim,
        expand=int(expand) if expand.is_integer() else expand,
        intermediate_size=config.inner_dim,
        state_size=config.state_dim,
        conv_kernel=config.conv_width,
        time_step_rank=config.delta_rank,
        use_conv_bias=config.conv_bias,
        use_bias=config.proj_bias,
        hidden_act="silu",
        layer_norm_epsilon=config.norm_eps,
        residual_in_fp32=True,
        tie_word_embeddings=config.tie_embeddings,
        initializer_range=config.init_std,
    )


def _model(layers: int, width: int, **rest) -> MambaConfig:
    return MambaConfig(num_layers=layers, embed_dim=width, **rest)


MAMBA = Family(
    name="mamba",
    title="Mamba",
    config=MambaConfig,
    tensors=_TENSORS,
    required=dict(vocab_size=Size, num_hidden_layers=Layers, hidden_size=Size),
    optional=dict(
        max_position_embeddings=Size, expand=Positive, state_size=Size, conv_kernel=Count,
        use_conv_bias=bool, use_bias=bool, layer_norm_epsilon=Positive, tie_word_embeddings=bool,
        initializer_range=Positive,
    ),
    read=_read,
    write=_write,
    check=_check,
    presets={
        "mamba-130m": _model(24, 768),
        "mamba-370m": _model(48, 1024),
        "mamba-790m": _model(48, 1536),
        "mamba-1.4b": _model(48, 2048),
        "mamba-2.8b": _model(64, 2560),
        "mamba-nano": _model(2, 64, state_dim=8, context_length=256, **BYTES),
    },
)  # fmt: skip
