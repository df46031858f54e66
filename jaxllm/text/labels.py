"""Labels of texts, or of their words, by an encoder: trained from a pretrained one, evaluated, predicted.

    from jaxllm.data import Labelled
    from jaxllm.text import LabelConfig, Labeller, train_labels

    trained = train_labels(LabelConfig(start="my-bert/", out="runs/mood"), Labelled(texts, labels))
    trained.evaluation  # of a tenth that is held out, or of held_out=: loss, accuracy, macro_f1
    Labeller.load("runs/mood").predict(["what a film"])

A run's folder is one like any other: `jaxllm.text.load_model` reads it, `jaxllm convert` writes it for
transformers (or, with --adapter, its LoRA adapter and head for peft).
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import jax
import optax

from jaxllm import models
from jaxllm.adapt import LoraConfig
from jaxllm.adapt.names import split_names
from jaxllm.config import Count, Size, UserPath
from jaxllm.data import Labelled, Tokenizer
from jaxllm.data.labelled import LabelledBatches, encode_texts
from jaxllm.errors import UserError, brief
from jaxllm.optim import OptimConfig, make_optimizer
from jaxllm.parallel import losses_told
from jaxllm.text.adapted import adapted, lasting, with_label_head
from jaxllm.text.labeller import Labeller
from jaxllm.text.load import TOKENIZER_FILE, load_model_and_tokenizer
from jaxllm.text.own_fields import OURS, with_own
from jaxllm.text.precision import PRECISIONS, get_precision, with_precision
from jaxllm.train.config import RunConfig
from jaxllm.train.length import check_length
from jaxllm.train.loop import Trained, train_run
from jaxllm.train.prepare import prepare
from jaxllm.train.task import Task

OWN_FIELDS = (*OURS, "dropout")  # of the model: the run's, whatever encoder `start` names
_HELD_OUT = 10  # one text of so many, where nothing else is held out


@dataclass(frozen=True)
class LabelConfig(RunConfig):
    """A run that trains an encoder to label texts or words.

    Examples:
      >>> LabelConfig(lora=LoraConfig(rank=8)).lora.also
      'head'
    """

    start: UserPath | None = None  # an encoder: a pretrained folder, a run's, a hub id
    labels: tuple[str, ...] = ()  # the classes, in the order of their logits; (): those of the examples
    longest: Size = 128  # most tokens of a text
    long_texts: Literal["cut", "refuse"] = "cut"  # those with more; lists of words are never cut
    marked: Literal["first", "last"] = "first"  # which of a word's tokens carries its label
    steps: Count = 500
    batch_size: Size = 32  # texts a step, over all devices
    precision: Literal[tuple(PRECISIONS)] = "float32"
    optim: OptimConfig = OptimConfig(learning_rate=1e-4, warmup_steps=50, weight_decay=0.01, beta2=0.999)
    lora: LoraConfig = LoraConfig()  # train an adapter, and the head, beside the encoder
    train_only: str | None = None  # train these parameters alone: head, ...
    # the start's, but for remat, attention_implementation and dropout where `start` names it
    model: models.LanguageModel = field(default_factory=lambda: models.get_preset("bert-nano"))
    out: UserPath = "runs/labels"

    _free = (*RunConfig._free, "start")

    def __post_init__(self):
        # A head that was drawn is trained, whatever else is, and kept in checkpoints.
        if self.lora.rank is not None:
            object.__setattr__(self, "lora", dataclasses.replace(self.lora, also=_and_head(self.lora.also)))
        if self.train_only is not None:
            object.__setattr__(self, "train_only", _and_head(self.train_only))
        super().__post_init__()
        if len(set(self.labels)) < len(self.labels):
            raise UserError(f"labels={brief(self.labels)} hold a name twice; give each once")
        if self.lora.rank is not None and self.train_only is not None:
            raise UserError(
                "lora.rank does not go with train_only; leave out one of them (lora.also adds to it)"
            )

    @property
    def work_per_step(self) -> tuple[int, str]:
        """What a step works through, for the log's speeds."""
        return self.batch_size, "texts"


def _and_head(names: str | None) -> str:
    known = split_names(names or "")
    return ",".join(known if "head" in known else [*known, "head"])


@dataclass(frozen=True, repr=False)
class TrainedLabels(Trained):
    """A finished run, and what it made."""

    labeller: Labeller | None = None


def train_labels(
    config: LabelConfig,
    examples: Labelled,
    held_out: Labelled | None = None,
    *,
    start: tuple[models.LanguageModel, Any, Tokenizer] | None = None,
    optimizer: optax.GradientTransformation | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> TrainedLabels:
    """Train an encoder to label texts or words, or go on where the checkpoints in `config.out` end.

    Args:
      config: the run.
      examples: what to learn from.
      held_out: what to evaluate on; None: a tenth of the examples, drawn at random, which are not learned.
      start: (config, parameters or None, tokenizer) of an encoder, instead of the one that `config.start`
        names; without parameters it is drawn.
      optimizer: any optax transformation, instead of the one that `config.optim` describes.
      devices: which to train on; None is all.

    Raises:
      UserError: bad input, before anything is compiled.
      Interrupted, NonFiniteLoss, ProcessLost: see `jaxllm.train.train_run`.
    """
    model, params, tokenizer = _started(config, start)
    known = set(examples.classes) <= set(model.labels)
    classes = config.labels or (model.labels if known else examples.classes)
    if len(classes) < 2:
        raise UserError(f"all examples have the label '{classes[0]}'; give some of another too")
    if held_out is None:
        examples, held_out = examples.split(_HELD_OUT, config.seed)
    if held_out.of_words != examples.of_words:
        raise UserError("what is held out has labels of another kind than the examples, texts' or words'")
    head = "token_labels" if examples.of_words else "text_labels"
    model, params = with_label_head(model, params, head, classes, jax.random.key(config.seed))
    if config.start is not None:
        config = dataclasses.replace(config, start=lasting(config.start))
    config = with_precision(dataclasses.replace(config, model=model))
    longest = min(config.longest, model.most_positions or config.longest)
    cut = config.long_texts == "cut" and not examples.of_words
    options = dict(longest=longest, of_words=examples.of_words, marked=config.marked, cut=cut)
    reader = partial(encode_texts, tokenizer, **options)
    ids, encoded = examples.ids(classes), reader(examples.texts)
    held_out.ids(classes)  # a label that is none, before anything is compiled
    reader(held_out.texts)
    process = jax.process_index(), jax.process_count()
    batches = partial(LabelledBatches, tokenizer, encoded, ids, batch_size=config.batch_size, longest=longest,
                      seed=config.seed, process=process)  # fmt: skip
    _tell(config, examples, held_out, encoded, longest, batches().steps_per_pass)

    def loss(params, batch, key):
        options = dict(segment_ids=batch["mask"], key=key)
        if config.model.num_token_types:
            options["token_types"] = batch["token_types"]
        hidden_BTD = models.trunk(config.model, params, batch["tokens"], **options)
        return models.hidden_loss(config.model, params, hidden_BTD, batch["targets"])

    task = Task(
        init=partial(models.init, config.model),
        axes=models.axes(config.model),
        batches=batches,
        loss=loss,
        save=lambda folder: tokenizer.save(folder / TOKENIZER_FILE),
    )
    view = None
    if config.lora.rank is not None or config.train_only is not None:
        if params is None:
            raise UserError(
                "lora.rank and train_only train a part of an encoder that is there already; give its "
                "parameters"
            )
        task, params, view = adapted(config, task, params, apart=False)

    def labeller(trained):
        whole = trained if view is None else view.merge(trained, run.frozen())
        options = dict(longest=longest, marked=config.marked, long_texts=config.long_texts)
        return Labeller(config.model, whole, tokenizer, **options)

    task = dataclasses.replace(task, evaluate=lambda trained, _: labeller(trained).score(held_out))
    own_rates = optimizer is None
    make_schedule = config.optim.make_schedule if own_rates else None
    optimizer = make_optimizer(config.optim, config.steps, task.axes) if own_rates else optimizer
    run = prepare(
        task, config, views=() if view is None else (view,), start=params, devices=devices,
        optimizer=get_precision(config.precision).wrap(optimizer),
        start_name=f"'{config.start}'" if start is None else "the given encoder",
        schedule=make_schedule(config.steps) if own_rates else None,
        check=check_length(config, make_schedule, config.optim.schedule),
    )  # fmt: skip
    trained = train_run(run)
    with losses_told():
        return TrainedLabels(**vars(trained), labeller=labeller(trained.params))


def _started(config: LabelConfig, start) -> tuple[models.LanguageModel, Any, Tokenizer]:
    """Return (config, parameters, tokenizer) of the encoder to begin with.

    Raises:
      UserError: there is none, or two, or one that reads one way.
    """
    if (start is None) == (config.start is None):
        raise UserError(
            "labels need an encoder to begin with; name it with start: a pretrained folder, a run's, a hub id"
            if start is None
            else f"start= and config.start='{config.start}' both give an encoder; give one of them"
        )
    if start is None:
        dtype = get_precision(config.precision).param_dtype
        model, params, tokenizer = load_model_and_tokenizer(config.start, param_dtype=dtype)
        # A run's lie on one device; a mesh of several would refuse them there.
        start = with_own(model, config.model, OWN_FIELDS), jax.device_get(params), tokenizer
    model, params, tokenizer = start
    if getattr(model, "causal", True):
        name = "the given model" if config.start is None else f"'{config.start}'"
        raise UserError(
            f"{name} reads texts in one direction, and labels are trained on an encoder: BERT, RoBERTa, "
            "DeBERTa, or any transformer with causal=False"
        )
    if tokenizer.vocab_size > model.known_vocab_size:
        raise UserError(
            f"the tokenizer has ids up to {tokenizer.vocab_size - 1}, beyond the encoder's vocab_size="
            f"{model.vocab_size}; give both of one model"
        )
    return model, params, tokenizer


def _tell(config, examples, held_out, encoded, longest, steps_per_pass) -> None:
    if jax.process_index() != 0:
        return
    what = "lists of words" if examples.of_words else "texts"
    cut = sum(one.is_cut for one in encoded)
    told = f"; {cut:,} are cut at {longest} tokens" if cut else ""
    classes = config.model.labels
    print(
        f"{len(examples):,} {what} to train on and {len(held_out):,} held out, {len(classes)} labels "
        f"({brief(', '.join(classes), 60)[1:-1]}){told}; {steps_per_pass:,} steps read each once",
        file=sys.stderr,
    )
