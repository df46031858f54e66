"""Compile for a machine that is not here: its devices, a program's memory, its time.

Start with `plan`, the fastest way to train that fits, or `compile_train_step`, one step's account;
`compile` takes any function, `target_names` lists the machines.

    from jaxllm import targets

    forecast = targets.compile_train_step(TrainConfig(...), "v5e-8")
    print(forecast)
    forecast.plot("memory.png")
    print(targets.plan(TrainConfig(...), "v5e-8").table())
    print(targets.compile_decode_step(get_preset("llama-2-7b", dtype="bfloat16"), 8, 1024, "v5e-8"))
"""

import importlib

from jaxllm.targets.catalog import Target, get_target, target_names
from jaxllm.targets.compiled import compile, mesh
from jaxllm.targets.forecast import Forecast
from jaxllm.targets.topology import compiler_options, devices, is_available

__all__ = ["Forecast", "Plan", "Search", "Target", "compile", "compile_decode_step", "compile_train_step",
           "compiler_options", "devices", "estimate", "get_target", "is_available", "mesh", "plan",
           "target_names"]  # fmt: skip


# These import the whole training stack, which those who compile a kernel do not need.
_WITH_TRAINING = {
    "compile_decode_step": "train_step", "compile_train_step": "train_step", "estimate": "analytic",
    "plan": "planner", "Plan": "planner", "Search": "candidates",
}  # fmt: skip


def __getattr__(name: str):
    if name in _WITH_TRAINING:
        return getattr(importlib.import_module(f"jaxllm.targets.{_WITH_TRAINING[name]}"), name)
    raise AttributeError(f"module 'jaxllm.targets' has no attribute '{name}'")
