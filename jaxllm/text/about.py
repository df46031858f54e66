"""What a run on text is, in the words that it starts with."""

import numpy as np

from jaxllm import data
from jaxllm.data.examples import TEXT
from jaxllm.text.config import TrainConfig
from jaxllm.text.precision import get_precision


def about(config: TrainConfig, corpus: data.Corpus, optimizer: str | None = None) -> dict[str, str]:
    """Return {what: the words}.

    Args:
      config: the run, with its model's vocabulary and types filled in.
      corpus: its text.
      optimizer: what to call one that is not the config's.
    """
    return {
        "model": _model(config),
        "data": about_data(config, corpus),
        "tokenizer": _tokenizer(config, corpus),
        "steps": _steps(config, corpus),
        "precision": _precision(config.precision),
        "optimizer": optimizer or _optimizer(config),
    }


def about_data(config: TrainConfig, corpus: data.Corpus) -> str:
    """Return what is trained on, and what is held out."""
    train, valid = corpus.train, corpus.valid
    held_name = "" if config.valid_data is None else f" of '{config.valid_data}'"
    if corpus.kind == TEXT:
        share = f"{len(valid) / (len(train) + len(valid)):.1%}"
        if held_name or train.num_documents + valid.num_documents > 2:
            said = f"{_counted(train.num_documents, 'document')} ({len(train):,} tokens) to train on, "
            held = f"{len(valid):,} tokens" if held_name else f"{len(valid):,} tokens, {share}"
            said += f"{valid.num_documents:,}{held_name} ({held}) held out"
        else:  # a document that was cut, or two that are one on each side
            said = f"{len(train):,} tokens to train on, {len(valid):,} ({share}) held out"
    else:
        splits = train, valid
        predicted, ids = sum(s.num_predicted for s in splits), sum(map(len, splits))
        pairs = config.model.start_id is not None
        sizes = [np.maximum(*data.pair_lengths(s)) if pairs else s.lengths - 1 for s in splits]
        long = sum(int((size > config.seq_len).sum()) for size in sizes)
        said = (
            f"{corpus.kind}, {train.num_documents:,} examples to train on and {valid.num_documents:,}"
            f"{held_name} held out; {predicted:,} of {ids:,} tokens are predicted"
        )
        if long:
            said += f"; left out for being longer than seq_len {config.seq_len}: {long:,} examples"
    copies = train.copies + valid.copies
    if copies:
        what = "documents" if corpus.kind == TEXT else "examples"
        said += f"; {copies:,} {what} are copies of others, and copies stay on one side"
    return f"'{config.data}': {said}"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" + "s" * (number != 1)


def _model(config: TrainConfig) -> str:
    model = config.model
    words = [f"{model.num_layers} layers x {model.embed_dim}"]
    heads, kv_heads = getattr(model, "num_heads", None), getattr(model, "num_kv_heads", None)
    shared = kv_heads not in (None, heads)
    if heads:
        words.append(f"{heads} heads" + f" ({kv_heads} of keys and values)" * shared)
    words += [f"context {model.context_length:,}", f"vocabulary {model.vocab_size:,}"]
    return f"{model.architecture}, {', '.join(words)}"


def _tokenizer(config: TrainConfig, corpus: data.Corpus) -> str:
    valid = corpus.valid
    name = f"that of '{config.start}'" if config.start is not None else f"'{config.tokenizer}'"
    said = f"{name}, {corpus.tokenizer.vocab_size:,} ids"
    if valid.predicted is not None:  # bytes are counted of what is predicted alone
        return said
    return f"{said}, {valid.num_bytes / len(valid):.2f} bytes a token"


def _steps(config: TrainConfig, corpus: data.Corpus) -> str:
    tokens = config.steps * config.tokens_per_step
    batch = f"{config.batch_size:,} x {config.seq_len:,} tokens"
    parts = f", a batch in {config.accumulate} parts" if config.accumulate > 1 else ""
    epochs = tokens / len(corpus.train)
    return f"{config.steps:,} of {batch}: {tokens:,} tokens, {_round(epochs)} epochs{parts}"


def _round(epochs: float) -> str:
    """Return two figures, and all of those before the point."""
    return f"{epochs:,.0f}" if epochs >= 10 else f"{epochs:.2g}"


def _precision(name: str) -> str:
    policy = get_precision(name)
    master = ", float32 master weights" if policy.master_weights else ""
    return f"{name}: {policy.param_dtype} weights{master}, {policy.dtype} products"


def _optimizer(config: TrainConfig) -> str:
    optim = config.optim
    end = "" if optim.schedule == "constant" else f" to {optim.learning_rate * optim.final_fraction:g}"
    warmup = f", {optim.warmup_steps:,} steps of warmup" if optim.warmup_steps else ""
    if optim.warmup_steps > config.steps:
        warmup += ", more than the run has"
    words = [f"{optim.name}, learning rate {optim.learning_rate:g} ({optim.schedule}{end}{warmup})"]
    words += [f"weight decay {optim.weight_decay:g}"] * optim.decays
    words += [f"clipped at {optim.clip_norm:g}"] * bool(optim.clip_norm)
    return ", ".join(words)
