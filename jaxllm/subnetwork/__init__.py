"""Train random parts of a model: a subnetwork is `params -> smaller params`, and a smaller config."""

from jaxllm.subnetwork.extract import extract, extract_in_turn
from jaxllm.subnetwork.rates import Rates, shrink
from jaxllm.subnetwork.sample import sample, sampled_units
from jaxllm.subnetwork.schedule import (
    SCHEDULES,
    Savings,
    Schedule,
    Stage,
    evolving,
    get_schedule,
    layer_dropout,
    progressive_layer_drop,
    random_paths,
    savings,
)
from jaxllm.subnetwork.view import check_schedule, subnetwork

__all__ = [
    "SCHEDULES",
    "Rates",
    "Savings",
    "Schedule",
    "Stage",
    "check_schedule",
    "evolving",
    "extract",
    "extract_in_turn",
    "get_schedule",
    "layer_dropout",
    "progressive_layer_drop",
    "random_paths",
    "sample",
    "sampled_units",
    "savings",
    "shrink",
    "subnetwork",
]
