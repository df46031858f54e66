"""Every knob of a training run, each once, with its check."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxllm.adapt import LoraConfig
from jaxllm.config import Count, CountOrZero, Fraction, NotNegative, Size, UserPath, from_plain
from jaxllm.errors import UserError
from jaxllm.models import HybridConfig, LanguageModel, check_transformer, get_preset
from jaxllm.optim import OptimConfig
from jaxllm.subnetwork import SCHEDULES, get_schedule
from jaxllm.text.precision import PRECISIONS
from jaxllm.tiles.config import TilesConfig
from jaxllm.train.config import RunConfig
from jaxllm.vocabulary import parse_groups

ENGINES = ("jit", "tiles")
_VALID_FRACTION = 0.1
_MOST_TOKENS = 2**26  # a step; the largest published batches have a quarter of it


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """A training run on text. `steps`, `batch_size` and `seq_len` decide how many tokens it sees."""

    model: LanguageModel = field(default_factory=lambda: get_preset("gpt2-micro", vocab_size=None))
    data: UserPath = "sotu"  # "sotu" (embedded), file or folder, .jsonl/.csv/.tsv, tfds:NAME, hf:NAME
    valid_data: UserPath | None = None  # held-out text of its own; None: a part of `data` is held out
    valid_fraction: Fraction = _VALID_FRACTION  # of the text of `data`: that part
    tokenizer: UserPath = "bpe:1024"  # gpt2, bytes, char, bpe:SIZE (trained on the data), tokenizer.json
    # merge_order, merge_tree, right_parent, frequency or random, :K after it for K slots: model.vocab_groups
    vocab_groups: str | None = None
    text_column: str | None = None  # of rows; None: messages, prompt and completion, or text
    packed: bool = True  # examples: several to a row; or each in a row of its own
    long_examples: Literal["refuse", "skip"] = "refuse"  # those that are longer than seq_len
    isolate_documents: bool = True  # attention and loss stay inside a document
    seq_len: Size = 256  # tokens
    batch_size: Size = 16  # sequences a step, over all devices
    accumulate: Count = 1  # parts a batch is computed in, one by one; with offload=state, in each layer
    precision: Literal[tuple(PRECISIONS)] = "float32"
    z_loss: NotNegative = 0.0  # weight of mean(logsumexp^2) (PaLM, arXiv 2204.02311, section 5)
    optim: OptimConfig = OptimConfig()
    subnetwork: Literal[tuple(SCHEDULES)] | None = None  # train random parts of the model, by a schedule
    unsampled: Literal["zero_grad", "freeze"] = "zero_grad"  # what the optimizer does to the other parts
    engine: Literal[ENGINES] = "jit"  # one compiled step, or tile tasks that a scheduler places
    tiles: TilesConfig = TilesConfig()  # with the engine "tiles" alone
    data_changed: Literal["refuse", "continue"] = "refuse"  # resuming, where the text is not as it was
    start: UserPath | None = None  # fine-tune: a run's folder, a pretrained folder or file, a hub id
    lora: LoraConfig = LoraConfig()  # train an adapter beside the model that `start` gives
    train_only: str | None = None  # train these parts of it alone: names with commas, embed, mlp, query, ...
    eval_batches: CountOrZero = 20  # held-out batches an evaluation reads; 0: all
    final_eval_batches: CountOrZero = 0  # the same for the evaluation after the last step
    sample_every: CountOrZero = 0  # steps between texts that the model writes, to be read; 0: none

    # Data, tokenizer and length are free by name: what they stand for is compared, not what it is called.
    _free = (*RunConfig._free, "data", "valid_data", "valid_fraction", "tokenizer", "text_column",
             "data_changed", "start", "engine", "tiles", "sample_every", "eval_batches",
             "final_eval_batches")  # fmt: skip

    def __post_init__(self):
        super().__post_init__()
        if self.valid_data is not None and self.valid_fraction != _VALID_FRACTION:
            raise UserError(
                "valid_data and valid_fraction both say what is held out; give the text or the fraction"
            )
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
        if self.seq_len > (self.model.most_positions or self.seq_len):
            raise UserError(
                f"seq_len {self.seq_len} is longer than the {self.model.context_length} positions "
                "the model learns; lower seq_len or raise model.context_length"
            )
        if self.vocab_groups is not None:
            parse_groups(self.vocab_groups)
            if self.start is not None:
                raise UserError(
                    f"vocab_groups makes a head anew, and start='{self.start}' brings its own; leave it out, "
                    "or fit groups to it with jaxllm.vocabulary.to_grouped_head and give start= in Python"
                )
        if self.engine == "tiles":
            check_transformer(self.model, "engine=tiles")
        if self.subnetwork is not None:
            check_transformer(self.model, "subnetwork")
            get_schedule(self.subnetwork, self.model.num_layers, self.steps)
        _check_offload(self)
        if self.sample_every and self.offload == "state":
            raise UserError(
                "sample_every writes with the whole model on the devices, and offload=state keeps it in the "
                "host's memory; leave out one of the two"
            )
        if self.adapts:
            _check_adapted(self)

    @property
    def adapts(self) -> bool:
        """Whether a part of a given model, or an adapter beside it, is trained and the rest is frozen."""
        return self.lora.rank is not None or self.train_only is not None

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step reads."""
        return self.batch_size * self.seq_len

    @property
    def work_per_step(self) -> tuple[int, str]:
        """What a step works through, for the log's speeds."""
        return self.tokens_per_step, "tokens"


def _check_offload(config: TrainConfig) -> None:
    kind = config.offload
    if kind == "optimizer" and config.engine == "tiles":
        raise UserError(
            "offload=optimizer is of one compiled step, and the engine tiles moves what it needs itself; set "
            "tiles.device_bytes, and offload to state where the model is larger than the devices"
        )
    if kind != "state" or config.engine == "tiles":
        return
    if config.model.start_id is not None:
        raise UserError(
            "offload=state fetches one stack of layers, and an encoder-decoder has two; set offload to "
            "optimizer or none"
        )
    if isinstance(config.model, HybridConfig) and config.model.blocks > 1:
        raise UserError(
            f"offload=state fetches whole stacks of layers, and blocks={config.model.blocks} cut each part's "
            "in the host's memory; set model.blocks to 1, or offload to optimizer or none"
        )
    if config.model.remat in ("none", "everything_saveable"):
        raise UserError(
            "offload=state fetches a layer's weights again in the backward pass, and model.remat="
            f"{config.model.remat} would keep those of all layers; set model.remat to full, dots or offload"
        )


def _check_adapted(config: TrainConfig) -> None:
    name = "train_only" if config.train_only is not None else "lora.rank"
    others = {
        "lora.rank": config.lora.rank is None or name == "lora.rank",
        "subnetwork": config.subnetwork is None,
        "vocab_groups": config.vocab_groups is None,
        "engine=tiles": config.engine != "tiles",
        "offload=state": config.offload != "state",
    }
    for other, fits in others.items():
        if not fits:
            raise UserError(f"{name} does not go with {other}; leave out one of them")


def plain_run(config: TrainConfig, **changes: Any) -> TrainConfig:
    """Return the training run within an experiment's config, without the experiment's own fields.

    Args:
      config: of a class that extends TrainConfig.
      changes: fields of the run to replace.
    """
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(TrainConfig)}
    return TrainConfig(**(shared | changes))


def model_from_dict(values: dict[str, Any]) -> LanguageModel:
    """Return the model config that `to_dict` turned into plain values."""
    return from_plain(LanguageModel, values, "the model of a checkpoint")
