"""config.json of Hugging Face models to our configs and back."""

from collections.abc import Mapping
from typing import Any

from jaxllm.errors import UserError, unknown
from jaxllm.models.config import LanguageModel, ModelConfig
from jaxllm.models.families import FAMILIES, titles


def config_from_huggingface(theirs: Mapping[str, Any], **overrides) -> LanguageModel:
    """Return the config of a config.json; overrides add what it does not say.

    Raises:
      UserError: a model_type, activation or rope scaling that is not supported.

    Examples:
      >>> config_from_huggingface({"model_type": "gpt2", "n_layer": 24, "n_embd": 1024,
      ...     "n_head": 16, "n_positions": 1024, "vocab_size": 50257,
      ...     "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}).num_params
      354823168
    """
    family = theirs.get("model_type")
    if family not in FAMILIES:
        raise unknown("model_type", str(family), FAMILIES)
    record = FAMILIES[family]
    return record.config(**(record.read(theirs) | overrides))


def config_to_huggingface(config: LanguageModel) -> dict[str, Any]:
    """Return the config.json of a config that one of FAMILIES can express.

    Raises:
      UserError: none can.
    """
    if config.vocab_groups is not None:
        raise UserError(
            "no Hugging Face family can hold a head of groups, whose log-probabilities are not linear in the "
            "hidden states; fit a dense head to it with vocabulary.to_dense_head and save that"
        )
    for family in FAMILIES.values():
        if type(config) is not family.config:
            continue
        theirs = family.write(config)
        if _same_model(config, config_from_huggingface(theirs)):
            return theirs
    if not isinstance(config, ModelConfig):
        raise UserError(f"no Hugging Face family can hold this model of architecture {config.architecture}")
    raise UserError(
        f"no Hugging Face family can hold this model: {titles('and')} have no such mix of "
        f"norm={config.norm}, position={config.position}, windows={config.windows}, "
        f"sink_logit={config.sink_logit}, parallel_residual={config.parallel_residual} and biases"
    )


def _same_model(ours: LanguageModel, again: LanguageModel) -> bool:
    # How it is computed and initialised is ours to choose; what it computes is not.
    ignored = (
        "dtype",
        "param_dtype",
        "remat",
        "attention_implementation",
        "scan_implementation",
        "init_std",
        "windows",
        "attention_scale",
        "group_head",
        "dropout",
    )
    if isinstance(ours, ModelConfig) and ours.position != "rotary":
        ignored += ("rope_theta", "windowed_rope_theta", "rotary_fraction", "rope_scaling")
    if isinstance(ours, ModelConfig) and ours.position != "disentangled":
        ignored += ("disentangled",)
    if ours.head != "text_labels":
        ignored += ("label_activation",)
    a, b = vars(ours), vars(again)
    rest = all(a[name] == b[name] for name in a if name not in ignored)
    if not isinstance(ours, ModelConfig):
        return rest
    scales = [c.score_scale for c in (ours, again)]
    windows = [c.windows * (c.num_layers // len(c.windows)) for c in (ours, again)]
    return rest and windows[0] == windows[1] and abs(scales[0] - scales[1]) < 1e-6
