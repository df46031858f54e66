"""Synthetic problems that tell architectures apart before a pretraining is paid for.

Start with `draw_instances`, which draws MAD's six tasks: `MAD` has the published sizes, a task knows its
ceiling and what guessing gives. `backcopy_task` makes heads turn to a first token. `draw_listops` and
`draw_pathfinder` draw by the rules of the Long Range Arena's generators.

Examples:
  >>> from jaxllm.synthetic import MAD, draw_instances
  >>> train = draw_instances(MAD["memorisation"], "train", seed=0)
  >>> train.inputs_NT.shape
  (256, 32)
"""

from jaxllm.synthetic.backcopy import Backcopy, backcopy_task
from jaxllm.synthetic.listops import (
    ListOps,
    ListOpsConfig,
    draw_listops,
    evaluate_listops,
    listops_text,
    read_listops,
)
from jaxllm.synthetic.mad import HARDER, MAD, MANTICORE, TASKS, Instances, MadTask, draw_instances
from jaxllm.synthetic.memory import fact_table
from jaxllm.synthetic.pathfinder import Pathfinder, PathfinderConfig, draw_pathfinder
from jaxllm.synthetic.recall import IGNORED

__all__ = [
    "HARDER",
    "IGNORED",
    "MAD",
    "MANTICORE",
    "TASKS",
    "Backcopy",
    "Instances",
    "ListOps",
    "ListOpsConfig",
    "MadTask",
    "Pathfinder",
    "PathfinderConfig",
    "backcopy_task",
    "draw_instances",
    "draw_listops",
    "draw_pathfinder",
    "evaluate_listops",
    "fact_table",
    "listops_text",
    "read_listops",
]
