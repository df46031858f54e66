"""Rotary positions in a config.json: transformers 5's rope_parameters, and the fields before them."""

from collections.abc import Mapping
from typing import Any

from jaxllm.config import Positive, Size, check, fits
from jaxllm.errors import UserError, brief
from jaxllm.models.config import ModelConfig
from jaxllm.models.rotary import SCALINGS, RopeScaling

_FIELDS = dict(
    factor="factor",
    low_freq_factor="low_freq_factor",
    high_freq_factor="high_freq_factor",
    original_context="original_max_position_embeddings",
)
_READ = {"default": (), "linear": ("factor",), "llama3": tuple(_FIELDS)}


def read_rope(theirs: Mapping[str, Any], theta: str = "rope_theta") -> dict[str, Any]:
    """Return `rope_theta` and `rope_scaling` of a ModelConfig.

    Args:
      theirs: a config.json.
      theta: the field of older files that holds the base.

    Raises:
      UserError: a scaling that is not supported.
    """
    # transformers 5 nests rope_theta in rope_parameters; older files keep it at the top.
    rope = rope_fields(theirs)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in _READ:
        raise UserError(f"rope scaling '{kind}' is not supported, only {', '.join(_READ)}")
    values = {ours: rope[_FIELDS[ours]] for ours in _READ[kind]}
    return dict(
        rope_theta=float(rope.get("rope_theta", theirs.get(theta, 10000.0))),
        rope_scaling=RopeScaling(kind, **values) if values else RopeScaling(),
    )


def write_rope_scaling(config: ModelConfig) -> dict[str, Any]:
    """Return the field rope_scaling, if the config has any."""
    scaling = config.rope_scaling
    kind = SCALINGS[0] if config.position != "rotary" else scaling.kind
    if kind == "none":
        return {}
    values = {_FIELDS[ours]: getattr(scaling, ours) for ours in _READ[kind]}
    return {"rope_scaling": {"rope_type": kind, **values}}


def rope_fields(theirs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a config.json nests of its rotary positions."""
    return theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}


def check_rope(theirs: Mapping[str, Any], source: str, *, partial: bool = False) -> None:
    """Check what a config.json nests of its rotary positions.

    Args:
      partial: whether the family may rotate a part of a head.

    Raises:
      UserError: a field is malformed or missing, or asks for what is not supported.
    """
    for name in ("rope_parameters", "rope_scaling"):
        rope = theirs.get(name, {})
        good = isinstance(rope, dict) and fits(rope.get("rope_theta", 1.0), Positive)
        good = good and all(fits(rope.get(key, "default"), str) for key in ("rope_type", "type"))
        good = good and (partial or rope.get("partial_rotary_factor", 1.0) == 1.0)
        if not good:
            raise UserError(f"{source}: {name} is {brief(rope)}, which is not supported")
        kind = rope.get("rope_type", rope.get("type", "default"))
        for field in (_FIELDS[ours] for ours in _READ.get(kind, ())):
            if field not in rope:
                raise UserError(f"{source}: {name} has no '{field}', which scaling by '{kind}' needs")
            size = Size if field == _FIELDS["original_context"] else Positive
            check(f"{source}: {name}.{field}", rope[field], size)
