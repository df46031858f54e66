"""Every knob of a training run, each once, with its check."""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from jaxllm.config import Config, Count, CountOrZero, NotNegative, OneOf, Seed, Size, UserPath, from_plain
from jaxllm.errors import UserError, brief
from jaxllm.models import ModelConfig, get_preset
from jaxllm.optim import OptimConfig
from jaxllm.parallel import MeshConfig
from jaxllm.subnetwork import get_schedule
from jaxllm.tiles.config import TilesConfig
from jaxllm.train.precision import PRECISIONS
from jaxllm.vocabulary import parse_groups

ENGINES = ("jit", "tiles")
_MOST_TOKENS = 2**26  # a step; the largest published batches have a quarter of it


@dataclass(frozen=True)
class TrainConfig(Config):
    """A training run. `steps`, `batch_size` and `seq_len` decide how many tokens it sees."""

    model: ModelConfig = field(default_factory=lambda: get_preset("gpt2-micro", vocab_size=None))
    data: UserPath = "sotu"  # "sotu" (embedded), a file or folder, .jsonl/.csv/.tsv, or tfds:NAME
    tokenizer: UserPath = "bpe:1024"  # gpt2, bytes, char, bpe:SIZE (trained on the data), tokenizer.json
    vocab_groups: str | None = None  # ORDER or ORDER:K of jaxllm.vocabulary.VOCAB_ORDERS: model.vocab_groups
    text_column: str = "text"  # where the text is, in jsonl, csv, tsv and tfds
    isolate_documents: bool = True  # attention and loss stay inside a document
    seq_len: Size = 256  # tokens
    batch_size: Size = 16  # sequences a step, over all devices
    accumulate: Count = 1  # parts a batch is computed in, one by one; with offload=state, in each layer
    steps: Count = 1000  # optimizer steps of the whole run; the schedule spans them
    stop_after: CountOrZero = 0  # leave, saved, after this many steps of this session; 0: do them all
    precision: Annotated[str, OneOf(tuple(PRECISIONS))] = "float32"
    z_loss: NotNegative = 0.0  # weight of mean(logsumexp^2) (PaLM, arXiv 2204.02311, section 5)
    optim: OptimConfig = OptimConfig()
    subnetwork: str | None = None  # a schedule of `subnetwork.SCHEDULES`: train random parts of the model
    unsampled: Literal["zero_grad", "freeze"] = "zero_grad"  # what the optimizer does to the other parts
    mesh: MeshConfig = MeshConfig()
    offload: Literal["none", "optimizer", "state"] = "none"  # to the host: moments, or layers too
    engine: Literal[ENGINES] = "jit"  # one compiled step, or tile tasks that a scheduler places
    tiles: TilesConfig = TilesConfig()  # with the engine "tiles" alone
    distributed: bool = False  # join the other processes of a multi-host run
    seed: Seed = 0  # of the parameters, the order of the data and every draw
    out: UserPath = "runs/train"  # folder of checkpoints, metrics, plots; a run in it is resumed
    data_changed: Literal["refuse", "continue"] = "refuse"  # resuming, where the text is not as it was
    eval_every: Count = 250  # steps; also at the end
    eval_batches: CountOrZero = 20  # held-out batches an evaluation reads; 0: all
    final_eval_batches: CountOrZero = 0  # the same for the evaluation after the last step
    save_every: Count = 250  # steps; also at the end and when interrupted
    keep_last: Count = 2  # checkpoints
    keep_best: CountOrZero = 1  # checkpoints, by held-out loss
    log_every: Count = 10  # steps
    progress: bool = True  # show a progress bar
    tensorboard: bool = False  # also write TensorBoard events
    profile: CountOrZero = 0  # trace this many steps with jax.profiler, into OUT/profile

    def __post_init__(self):
        super().__post_init__()
        if self.tokens_per_step > _MOST_TOKENS:
            raise UserError(
                f"batch_size {self.batch_size} x seq_len {self.seq_len} is {self.tokens_per_step} tokens a "
                f"step; expected at most {_MOST_TOKENS}"
            )
        if self.batch_size % self.accumulate:
            raise UserError(
                f"batch_size {self.batch_size} cannot be computed in accumulate={self.accumulate} "
                f"equal parts; choose a multiple"
            )
        if self.model.position == "learned" and self.seq_len > self.model.context_length:
            raise UserError(
                f"seq_len {self.seq_len} is longer than the {self.model.context_length} positions "
                "the model learns; lower seq_len or raise model.context_length"
            )
        if self.vocab_groups is not None:
            parse_groups(self.vocab_groups)
        if self.subnetwork is not None:
            get_schedule(self.subnetwork, self.model.num_layers, self.steps)
        _check_offload(self)

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step reads."""
        return self.batch_size * self.seq_len


def _check_offload(config: TrainConfig) -> None:
    kind = config.offload
    if kind == "optimizer" and config.engine == "tiles":
        raise UserError(
            "offload=optimizer is of one compiled step, and the engine tiles moves what it needs itself; set "
            "tiles.device_bytes, and offload to state where the model is larger than the devices"
        )
    if kind != "state" or config.engine == "tiles":
        return
    if config.model.remat in ("none", "everything_saveable"):
        raise UserError(
            "offload=state fetches a layer's weights again in the backward pass, and model.remat="
            f"{config.model.remat} would keep those of all layers; set model.remat to full, dots or offload"
        )


# What may differ between a checkpoint and the run that resumes it: nothing here changes the numbers, or
# (data, tokenizer, length) `resume` compares what it stands for, and not what it is called.
_FREE = ("data", "tokenizer", "text_column", "data_changed", "steps", "stop_after", "out", "mesh", "offload",
         "engine", "tiles", "distributed", "eval_every", "eval_batches", "final_eval_batches", "save_every",
         "keep_last", "keep_best", "log_every", "progress", "tensorboard", "profile")  # fmt: skip


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


def plain_run(config: TrainConfig, **changes: Any) -> TrainConfig:
    """Return the training run within an experiment's config, without the experiment's own fields.

    Args:
      config: of a class that extends TrainConfig.
      changes: fields of the run to replace.
    """
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(TrainConfig)}
    return TrainConfig(**(shared | changes))


def model_from_dict(values: dict[str, Any]) -> ModelConfig:
    """Return the model config that `to_dict` turned into plain values."""
    return from_plain(ModelConfig, values, "the model of a checkpoint")


def check_same_run(saved: dict[str, Any], asked: dict[str, Any], folder: str) -> None:
    """Check that a run may resume a checkpoint written with the config `saved`.

    Raises:
      UserError: a value that decides the numbers differs; names it and both values.
    """

    decisive = {f.name for f in dataclasses.fields(TrainConfig)} - set(_FREE)
    for name, (was, now) in differences(saved, asked).items():
        if name.split(".")[0] in decisive:
            old, new = (brief(value, 60) for value in (was, now))  # a map is long
            raise UserError(
                f"the checkpoint in {folder} was written with {name}={old}, this run asks for {new}; use "
                "the same value or another --out"
            )


def differences(saved: dict[str, Any], asked: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return {field: (saved, asked)} where two configs, as `to_dict` gives them, differ.

    A field that did not exist yet when `saved` was written had its default.

    Examples:
      >>> saved = to_dict(TrainConfig(steps=5))
      >>> del saved["subnetwork"]
      >>> differences(saved, to_dict(TrainConfig(steps=6)))
      {'steps': (5, 6)}
    """

    def flat(tree, prefix=""):
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    was = dict(flat(to_dict(TrainConfig()))) | dict(flat(saved))
    return {name: (was.get(name), value) for name, value in flat(asked) if was.get(name) != value}
