"""Which fields decide whether a run may go on from a checkpoint."""

from dataclasses import dataclass, replace
from typing import Any

import pytest

from jaxllm.errors import UserError
from jaxllm.in_context import ReasonerRun
from jaxllm.reward import PolicyConfig
from jaxllm.text import LabelConfig, TrainConfig
from jaxllm.train import RunConfig, to_dict
from jaxllm.train.config import check_kind, check_same_run, kind_of


@dataclass(frozen=True)
class Own(RunConfig):
    width: int = 3
    shown: int = 1
    _free = (*RunConfig._free, "shown")


@dataclass(frozen=True)
class Study(Own):
    """Adds what no step reads."""

    samples: int = 2


def test_a_task_says_what_is_free_and_a_class_that_adds_to_it_need_not():
    saved = to_dict(Study())
    for change in (dict(samples=3), dict(shown=2), dict(keep_steps=(1,)), dict(steps=7), dict(restore="x")):
        check_same_run(saved, replace(Study(), **change), "here")
    for change, said in ((dict(width=4), "width=3, this run asks for 4"), (dict(seed=1), "seed=0")):
        with pytest.raises(UserError, match=said):
            check_same_run(saved, replace(Study(), **change), "here")


@dataclass(frozen=True, kw_only=True)
class Needs(Own):
    data: str
    _free = Own._free


def test_a_field_without_a_default_may_decide_and_is_compared():
    saved = to_dict(Needs(data="x"))
    check_same_run(saved, Needs(data="x"), "here")
    with pytest.raises(UserError, match="data='x', this run asks for 'y'"):
        check_same_run(saved, Needs(data="y"), "here")
    check_same_run({name: value for name, value in saved.items() if name != "width"}, Needs(data="x"), "here")


KINDS: list[Any] = [RunConfig, TrainConfig, LabelConfig, PolicyConfig, ReasonerRun]


@pytest.mark.parametrize("told", [True, False])  # False: as checkpoints were written before
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_from_its_own_kind_alone(kind, told):
    saved = to_dict(kind()) | ({"kind": kind_of(kind())} if told else {}) | {"frozen": {"w": 3}}
    for other in KINDS:
        if other is kind:
            check_kind(saved, other(), "here")
            continue
        with pytest.raises(UserError, match=f"'here' holds a run of another kind.*this is {other.__name__}"):
            check_kind(saved, other(), "here")


@dataclass(frozen=True)
class Experiment(TrainConfig):
    """What a run within an experiment does not read."""

    variants: tuple[str, ...] = ("a",)
    timing_rounds: int = 3


def test_an_experiments_config_and_one_of_an_older_version_are_of_the_same_kind():
    older = {name: value for name, value in to_dict(TrainConfig()).items() if name not in ("lora", "z_loss")}
    older |= {"a_field_of_then": 1}
    for saved in (older, to_dict(Experiment()), to_dict(TrainConfig()) | {"kind": "TrainConfig"}):
        for config in (TrainConfig(), Experiment()):
            check_kind(saved, config, "here")
