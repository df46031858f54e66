"""What a run on text keeps from its beginning, and when it may go on."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxllm import data, models
from jaxllm.errors import UserError
from jaxllm.subnetwork import Schedule, get_schedule
from jaxllm.text.config import TrainConfig, model_from_dict
from jaxllm.text.load import TOKENIZER_FILE
from jaxllm.train.checkpoint import Checkpoints
from jaxllm.train.config import check_kind
from jaxllm.train.folder import run_folder
from jaxllm.train.length import check_length
from jaxllm.train.start import restored_folder


class Begun(NamedTuple):
    """What a run keeps from its beginning, where its data would give another one today."""

    tokenizer: data.Tokenizer | None = None
    vocab_groups: models.VocabGroups | None = None
    model: models.LanguageModel | None = None  # of a fine-tuned one, whose source may be gone


def begun(config: TrainConfig) -> Begun:
    """Return what the run in `config.out`, or that it restores, was begun with, where data would say anew.

    Raises:
      UserError: that run is not one on text.
    """
    out = _origin(config)
    kept = Checkpoints(out / "checkpoints", together=True)
    for step in reversed(kept.steps()):
        try:
            saved = kept.config(step)
        except Exception:  # damaged: `jaxllm.train.start` says so
            continue
        check_kind(saved, config, out)
        try:
            model = model_from_dict(saved["model"])
        except Exception:  # damaged too
            continue
        same = {name for name in ("tokenizer", "vocab_groups") if saved[name] == getattr(config, name)}
        # Trained on the text as it was then: text that was added must not change what an id means.
        trained = "tokenizer" in same and (data.is_trained(config.tokenizer) or config.start is not None)
        keep_groups = "vocab_groups" in same and config.data_changed == "continue"
        return Begun(
            _tokenizer(out) if trained else None,
            model.vocab_groups if keep_groups else None,
            None if config.start is None else model,
        )
    return Begun()


class TextBatches:
    """A run's training batches, which know the text they are of."""

    def __init__(self, config: TrainConfig, corpus: data.Corpus):
        self._config, self._corpus = config, corpus
        self._batches = data.batches(
            corpus.train,
            batch_size=config.batch_size,
            seq_len=config.seq_len,
            seed=config.seed,
            packed=config.packed,
            start_id=config.model.start_id,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._batches)

    def state(self) -> dict[str, Any]:
        """Return where the run stands in its data, and what identifies the data."""
        return {**self._batches.state(), "valid": self._corpus.valid.fingerprint}

    def restore(self, then: dict[str, Any]) -> None:
        """Go to a saved place.

        Raises:
          UserError: it is of other text or ids, unless the run may go on with others.
        """
        now = self.state()
        self._check_data(then, now)
        self._batches.restore(then | {name: now[name] for name in ("tokens", "data")})

    def _check_data(self, then, now) -> None:
        """Check that the ids are those that the run began with, or that it may go on with others."""
        config = self._config
        changed = [name for name in ("data", "valid") if then.get(name, now[name]) != now[name]]
        if then["tokens"] != now["tokens"] and not changed:  # from before there were fingerprints
            changed = ["data"]
        if not changed:
            return
        run = _origin(config)
        tokenizer = _tokenizer(run)
        if tokenizer is None or tokenizer.fingerprint != self._corpus.tokenizer.fingerprint:
            raise UserError(
                f"the checkpoint in {run} was written with another tokenizer than '{config.tokenizer}'; give "
                f"its own, {run / TOKENIZER_FILE}, or another --out"
            )
        parts = "training" if "data" in changed else "held-out"
        sizes = f"{then['tokens']:,} tokens to train on then, {now['tokens']:,} now"
        said = (
            f"the {parts} text of '{config.data}' is not what step {then['step']} in {run} was trained on "
            f"({sizes})"
        )
        if config.data_changed == "refuse":
            raise UserError(
                f"{said}; --data-changed continue goes on with the new text, from step {then['step']} of its "
                "own order; or give the old text, or another --out"
            )
        if jax.process_index() == 0:
            print(f"{said}; going on with the new text", file=sys.stderr)


def check_same_steps(config: TrainConfig, subnetworks: Schedule | None, own_rates: bool):
    """Return a check that the steps already taken are those of a run of the length that is asked for now.

    Args:
      config: the run.
      subnetworks: its schedule, if it was given and has no name.
      own_rates: whether the learning rate is the config's.
    """
    optim = config.optim
    check_rates = check_length(config, optim.make_schedule if own_rates else None, optim.schedule)

    def ends(n):
        name, layers = config.subnetwork, config.model.num_layers
        schedule = subnetworks if name is None else get_schedule(name, layers, n)
        return [n] if schedule is None else schedule.ends(n)

    def check(saved: dict[str, Any], step: int, folder: Path) -> None:
        check_rates(saved, step, folder)
        steps = saved["steps"]
        passed = [[min(end, step) for end in ends(n)] for n in (steps, config.steps)]
        if passed[0] != passed[1]:
            raise UserError(
                f"step {step} in {folder} is of a run of {steps} steps, and in one of {config.steps} the "
                f"stages of its subnetworks end elsewhere (after steps {ends(config.steps)} and not "
                f"{ends(steps)}); keep steps={steps}, or choose another --out"
            )

    return check


def _origin(config: TrainConfig) -> Path:
    """Return the folder of the run that goes on: its own, or that which it restores."""
    out = run_folder(config.out)
    if config.restore is None or Checkpoints(out / "checkpoints").steps():
        return out
    return restored_folder(config.restore)[0]


def _tokenizer(out: Path) -> data.Tokenizer | None:
    try:
        return data.load_tokenizer(str(out / TOKENIZER_FILE))
    except UserError:  # gone or damaged: the checkpoint's ids tell whether another one gives the same
        return None
