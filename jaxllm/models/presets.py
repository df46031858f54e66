"""Models by their published names, and small ones for a CPU."""

import dataclasses

from jaxllm.errors import unknown
from jaxllm.models.config import LanguageModel
from jaxllm.models.families import FAMILIES

PRESETS: dict[str, LanguageModel] = {
    name: preset for family in FAMILIES.values() for name, preset in family.presets.items()
}


def get_preset(name: str, **overrides) -> LanguageModel:
    """Return the preset called `name`, with some fields replaced.

    A size that the preset derives from another (head_dim, num_kv_heads, mlp_dim) is derived again
    unless it is among the overrides.

    Raises:
      UserError: no such preset or field, or values that do not fit together.

    Examples:
      >>> get_preset("gpt2-medium").num_params
      354823168
      >>> get_preset("gpt2", embed_dim=256, num_heads=4).mlp_dim
      1024
      >>> get_preset("gpt2", num_head=4)
      Traceback (most recent call last):
      ...
      jaxllm.errors.UserError: unknown model field 'num_head'; did you mean 'num_heads'? Known: ...
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    preset = PRESETS[name]
    fields = [field.name for field in dataclasses.fields(preset)]
    for field in overrides:
        if field not in fields:
            raise unknown("model field", field, fields)
    again = dict.fromkeys(derived_fields(preset))
    return dataclasses.replace(preset, **(again | overrides))


def derived_fields(config: LanguageModel) -> list[str]:
    """Return the fields whose values are those that the config derives from others.

    Examples:
      >>> derived_fields(PRESETS["llama-nano"])
      ['head_dim', 'norm_bias']
    """
    return [field for field, value in config.derived.items() if getattr(config, field) == value]
