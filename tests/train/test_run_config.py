"""Which fields decide whether a run may go on from a checkpoint."""

from dataclasses import dataclass, replace

import pytest

from jaxllm.errors import UserError
from jaxllm.train import RunConfig, to_dict
from jaxllm.train.config import check_same_run


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
