"""What the loop of any run is told: how long, where it writes, how often it looks and saves."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from jaxllm.config import Config, Count, CountOrZero, Seed, UserPath
from jaxllm.errors import UserError, brief
from jaxllm.parallel import MeshConfig


@dataclass(frozen=True)
class RunConfig(Config):
    """A run of any task. A task's own values go into a class that extends this one."""

    steps: Count = 1000  # optimizer steps of the whole run; the schedule spans them
    stop_after: CountOrZero = 0  # leave, saved, after this many steps of this session; 0: do them all
    seed: Seed = 0  # of the parameters, the order of the data and every draw
    out: UserPath = "runs/train"  # folder of checkpoints, metrics, plots; a run in it is resumed
    restore: UserPath | None = None  # another run's folder, or a checkpoint in it: go on from there in `out`
    mesh: MeshConfig = MeshConfig()
    offload: Literal["none", "optimizer", "state"] = "none"  # to the host: moments, or layers too
    distributed: bool = False  # join the other processes of a multi-host run
    eval_every: Count = 250  # steps; also at the end
    save_every: Count = 250  # steps; also at the end and when interrupted
    keep_last: Count = 2  # checkpoints
    keep_best: CountOrZero = 1  # checkpoints, by held-out loss; the best so far is saved for it
    keep_steps: tuple[Count, ...] = ()  # checkpoints of these steps are saved and kept
    log_every: Count = 10  # steps
    progress: bool = True  # say what the run is, show a bar, and draw OUT/curves.png
    tensorboard: bool = False  # also write TensorBoard events
    profile: CountOrZero = 0  # trace this many steps with jax.profiler, into OUT/profile

    # What may differ between a checkpoint and the run that resumes it: nothing here changes the numbers. The
    # fields of a class without a `_free` of its own (an experiment's, that extends a task's) may differ too.
    _free = ("steps", "stop_after", "out", "restore", "mesh", "offload", "distributed", "eval_every",
             "save_every", "keep_last", "keep_best", "keep_steps", "log_every", "progress", "tensorboard",
             "profile")  # fmt: skip

    @property
    def work_per_step(self) -> tuple[int, str]:
        """What a step works through, for the log's speeds: how many of what."""
        return 1, "steps"


def to_dict(config) -> dict[str, Any]:
    """Return a config as nested plain values that JSON can hold (infinities as strings)."""

    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, tuple | list):
            return [plain(v) for v in value]
        if isinstance(value, float) and value in (float("inf"), float("-inf")):
            return str(value)
        return value

    return plain(dataclasses.asdict(config))


def owner(config: RunConfig) -> type[RunConfig]:
    """Return the class whose fields a run is told: of a class that adds to a task's, the task's."""
    return next(one for one in type(config).__mro__ if "_free" in vars(one))


def kind_of(config: RunConfig) -> str:
    """Return what a checkpoint knows the kind of a run by."""
    return owner(config).__name__


def check_kind(saved: dict[str, Any], config: RunConfig, folder: Any) -> None:
    """Check that a checkpoint is of a run of a config's kind.

    One from before kinds were saved is known by its fields: of those that not all runs have, no more may be
    missing or left over than are there.

    Raises:
      UserError: it is of another kind.
    """

    def names(one):
        return {field.name for field in dataclasses.fields(one)}

    own = names(owner(config)) - names(RunConfig)
    added = names(config) - names(owner(config))
    there = saved.keys() - names(RunConfig) - added - {"frozen"}
    if "kind" not in saved and len(own ^ there) <= len(own & there):
        return
    was = saved.get("kind", "with other fields")
    if was != kind_of(config):
        raise UserError(
            f"'{folder}' holds a run of another kind ({was}, this is {kind_of(config)}); choose another --out"
        )


def check_same_run(saved: dict[str, Any], config: RunConfig, folder: str) -> None:
    """Check that a run may go on from a checkpoint written with the config `saved`.

    Raises:
      UserError: a value that decides the numbers differs; names it and both values.
    """
    decisive = {f.name for f in dataclasses.fields(owner(config))} - set(config._free)
    for name, (was, now) in differences(saved, config).items():
        if name.split(".")[0] in decisive:
            old, new = (brief(value, 60) for value in (was, now))  # a map is long
            raise UserError(
                f"the checkpoint in {folder} was written with {name}={old}, this run asks for {new}; use "
                "the same value or another --out"
            )


def differences(saved: dict[str, Any], config: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Return {field: (saved, now)} where a config differs from an earlier one, as `to_dict` gave it.

    A field that did not exist yet when `saved` was written had its default.

    Examples:
      >>> saved = to_dict(RunConfig(steps=5))
      >>> del saved["seed"]
      >>> differences(saved, RunConfig(steps=6))
      {'steps': (5, 6)}
    """

    def flat(tree, prefix=""):
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    fields = [f for f in dataclasses.fields(config) if f.default is f.default_factory]  # without a default
    given = {f.name: getattr(config, f.name) for f in fields}
    was = dict(flat(to_dict(type(config)(**given)))) | dict(flat(saved))
    return {name: (was.get(name), value) for name, value in flat(to_dict(config)) if was.get(name) != value}
