"""Train random parts of a model: a subnetwork is `params -> smaller params`, and a smaller config.

Start with `get_schedule("est-gpt2-like", num_layers, steps)`: which parts are trained when (`SCHEDULES`
names all; `evolving`, `layer_dropout`, `progressive_layer_drop` and `random_paths` make them). A run takes
it as `text.train(config, subnetworks=schedule)` or `--subnetwork est-gpt2-like`.

By hand: `sample` draws `Rates`' units, `extract` cuts them out of the parameters, `shrink` out of the
config; `subnetwork` is all of that as a view of a run. `savings` counts the FLOPs that a schedule saves.
"""

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
