"""Which part of a model each stage of a run trains, as data; schedules by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from jaxllm.config import Config, Count
from jaxllm.errors import UserError, unknown
from jaxllm.models import ModelConfig
from jaxllm.subnetwork.rates import Rates, shrink


class Stage(NamedTuple):
    """A stretch of a run."""

    end: float  # where it ends, as a part of the run's steps
    rates: Rates


@dataclass(frozen=True)
class Schedule(Config):
    """Stages one after the other, to the end of the run, and how their subnetworks are drawn.

    Raises:
      UserError: stages that overlap or do not reach the end of the run.

    Examples:
      >>> Schedule((Stage(0.5, Rates(heads=0.5)), Stage(0.4, Rates(mlp=0.5)), Stage(1.0, Rates())))
      Traceback (most recent call last):
      jaxllm.errors.UserError: stages end at 0.5, 0.4, 1; each must end after the one before, the last at 1
    """

    stages: tuple[Stage, ...]
    per_layer: bool = True  # see `sample`
    mlp_block: Count = 1  # see `sample`
    # Whether a layer's output is multiplied by the inverse of its probability to be kept.
    layer_scale: Literal["none", "inverse"] = "none"

    def __post_init__(self):
        super().__post_init__()
        ends = [0.0, *(stage.end for stage in self.stages)]
        if ends[-1] != 1 or any(not a < b for a, b in zip(ends[:-1], ends[1:], strict=True)):
            shown = ", ".join(f"{end:g}" for end in ends[1:]) or "nothing"
            raise UserError(f"stages end at {shown}; each must end after the one before, the last at 1")

    def ends(self, steps: int) -> list[int]:
        """Return the step at which each stage of a run of so many steps ends.

        Examples:
          >>> get_schedule("est-gpt2-like", num_layers=12, steps=150).ends(150)
          [20, 70, 150]
        """
        return [round(stage.end * steps) for stage in self.stages]


class Savings(NamedTuple):
    """The part of a plain run's FLOPs that a schedule saves."""

    blocks: float  # of the layers alone, as the paper's figures seem to be counted (inferred)
    step: float  # of whole steps: the head never shrinks. The optimizer's work is in neither


def savings(config: ModelConfig, schedule: Schedule, seq_len: int, steps: int) -> Savings:
    """Return what a schedule saves over a run, by `ModelConfig.flops_per_token`.

    Examples:
      >>> from jaxllm.models import get_preset
      >>> saved = savings(get_preset("gpt2"), get_schedule("est-gpt2-like", 12, 150), seq_len=1024, steps=150)
      >>> f"{saved.blocks:.2%} of the blocks, {saved.step:.2%} of the whole"
      '26.67% of the blocks, 19.44% of the whole'
    """
    head = 6 * config.embed_dim * config.known_vocab_size
    plain = config.flops_per_token(seq_len)
    ends = schedule.ends(steps)
    used = sum(
        (end - start) / steps * shrink(config, stage.rates).flops_per_token(seq_len)
        for start, end, stage in zip([0, *ends[:-1]], ends, schedule.stages, strict=True)
    )
    return Savings((plain - used) / (plain - head), (plain - used) / plain)


def get_schedule(name: str, num_layers: int, steps: int) -> Schedule:
    """Return the schedule of this name (of SCHEDULES) for a model and a length of the run.

    Raises:
      UserError: an unknown name.

    Examples:
      >>> get_schedule("est-gpt2", 12, 100)
      Traceback (most recent call last):
      jaxllm.errors.UserError: unknown subnetwork schedule 'est-gpt2'; did you mean 'est-gpt2-like'? ...
    """
    if name not in SCHEDULES:
        raise unknown("subnetwork schedule", name, SCHEDULES)
    return SCHEDULES[name](num_layers, steps)


def evolving(first: float, second: float, rate: float = 0.5) -> Schedule:
    """Return EST's three stages: fewer layers, heads and neurons; all layers; everything.

    The three stages are the paper's (Figure 1 of arXiv 2406.06962); where they end and the rates are
    not published. The two named schedules are reconstructed: they save exactly the published
    26.67 % (GPT-2) and 25.0 % (TinyLlama) of the blocks' FLOPs.

    Args:
      first: where the first stage ends, as a part of the run.
      second: where the second one ends.
      rate: of layers, heads and neurons.
    """
    small, wide = Rates(rate, rate, rate), Rates(heads=rate, mlp=rate)
    return Schedule((Stage(first, small), Stage(second, wide), Stage(1.0, Rates())))


def progressive_layer_drop(
    num_layers: int, steps: int, *, theta: float = 0.5, gamma: float | None = None, stages: int = 8
) -> Schedule:
    """Return progressive layer drop: skip more layers as training goes on, later layers more often.

    Layer i of L is kept with probability 1 - (i / L) (1 - theta(t)), theta(t) = (1 - theta) exp(-gamma t) +
    theta, and what it adds is divided by that (Zhang, He, arXiv 2010.13369). Theirs tosses a coin for
    each layer; here theta(t) is held for a stage and adjusted so that always the same whole number of
    layers is kept, which gives static shapes.

    Args:
      num_layers: of the model.
      steps: of the run.
      theta: the lowest theta(t).
      gamma: how fast it falls, a step; None: 100 / steps (inferred).
      stages: how often it is adjusted.
    """
    gamma = 100 / steps if gamma is None else gamma
    depth = np.arange(1, num_layers + 1) / num_layers

    def rates(stage: int) -> Rates:
        drop = (1 - theta) * (1 - np.exp(-gamma * steps * (stage + 0.5) / stages)) * depth
        skipped = round(drop.sum())
        return Rates(tuple(map(float, 1 - skipped / depth.sum() * depth))) if skipped else Rates()

    return Schedule(tuple(Stage((i + 1) / stages, rates(i)) for i in range(stages)), layer_scale="inverse")


def layer_dropout(rate: float = 0.5, end: float = 0.5) -> Schedule:
    """Return layers dropped at random, those kept divided by their probability; then all of them.

    Inverse-density scaling and a recovery with all layers are those of modded-nanogpt's pull request 348. The
    lengths are ours: they save what est-tinyllama-like saves.

    Args:
      rate: of layers that are kept.
      end: where the dropping ends, as a part of the run.
    """
    return Schedule((Stage(end, Rates(layers=rate)), Stage(1.0, Rates())), layer_scale="inverse")


def random_paths(num_layers: int, shortest: float = 0.5, stages: int = 4) -> Schedule:
    """Return random paths through the layers that grow longer stage by stage, to all of them.

    After RaPTr (arXiv 2402.05913), inferred from its abstract: the first and the last layer are on every
    path, and the stages are equally long.

    Args:
      num_layers: of the model.
      shortest: part of the layers on the first paths.
      stages: how many lengths there are.
    """
    lengths = np.linspace(max(3, shortest * num_layers), num_layers, stages).round()

    def path(length: float) -> Rates:
        inner = num_layers - 2
        return Rates((1.0, *[float(length - 2) / inner] * inner, 1.0)) if length < num_layers else Rates()

    return Schedule(tuple(Stage((i + 1) / stages, path(length)) for i, length in enumerate(lengths)))


SCHEDULES: dict[str, Callable[[int, int], Schedule]] = {  # of a number of layers and of steps
    "est-gpt2-like": lambda num_layers, steps: evolving(20 / 150, 70 / 150),
    "est-tinyllama-like": lambda num_layers, steps: evolving(0.2, 0.4),
    "progressive-layer-drop": progressive_layer_drop,
    "layer-dropout": lambda num_layers, steps: layer_dropout(),
    "random-paths": lambda num_layers, steps: random_paths(num_layers),
}
