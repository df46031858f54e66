"""Models that hybrids are made of, and the texts they read: trained here, pretrained, or random."""

import functools
import json
import lzma
from typing import NamedTuple

import jax
import numpy as np

from experiments.shared.epochs import Arrays
from experiments.shared.equal_size import widened
from experiments.shared.real_data import data_folder
from jaxllm import models
from jaxllm.data import Tokenizer, load_tokenizer
from jaxllm.data.embedded import sotu_addresses
from jaxllm.errors import UserError
from jaxllm.models import LanguageModel, MambaConfig, ModelConfig
from jaxllm.pretrained import from_pretrained


class Part(NamedTuple):
    """A model that a hybrid is made of."""

    config: LanguageModel
    params: dict
    tokenizer: Tokenizer


def read_texts(name: str) -> str:
    """Return a text: "sotu" (embedded), "tinyshakespeare" (real data), or a file's.

    Raises:
      UserError: there is none.
    """
    if name == "sotu":
        return "\n\n".join(one["text"] for one in sotu_addresses())
    if name == "tinyshakespeare":
        with lzma.open(data_folder("tinyshakespeare", "input.txt.xz"), "rt", encoding="utf-8") as file:
            return file.read()
    try:
        with open(name, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"no text in '{name}' ({error}); give sotu, tinyshakespeare or a text file"
        ) from error


def windows(ids: np.ndarray, seq_len: int, rows: int, seed: int = 0) -> Arrays:
    """Return rows of tokens and of those that follow, drawn without overlap.

    Examples:
      >>> (windows(np.arange(9), 4, 1)["targets"] - windows(np.arange(9), 4, 1)["tokens"]).tolist()
      [[1, 1, 1, 1]]
    """
    places = (len(ids) - 1) // seq_len
    if places < rows:
        raise UserError(f"a text of {len(ids)} tokens has {places} rows of {seq_len}; {rows} were asked for")
    starts = np.sort(np.random.default_rng(seed).permutation(places)[:rows])[:, None] * seq_len
    index = starts + np.arange(seq_len)
    return {"tokens": ids[index].astype(np.int32), "targets": ids[index + 1].astype(np.int32)}


def joined(*sets: Arrays) -> Arrays:
    """Return rows of several sets as one, shuffled: each half of it has rows of every set."""
    both = {name: np.concatenate([one[name] for one in sets]) for name in sets[0]}
    order = np.random.default_rng(0).permutation(len(next(iter(both.values()))))
    return {name: x[order] for name, x in both.items()}


@functools.lru_cache(maxsize=16)
def _losses(config: LanguageModel):
    def row_losses(params, tokens_BT, targets_BT):
        hidden_BTD = models.trunk(config, params, tokens_BT)
        return models.token_log_probs(config, params, hidden_BTD, targets_BT)

    return jax.jit(row_losses)


def log_probs(config: LanguageModel, params: dict, rows: Arrays, batch: int = 8) -> np.ndarray:
    """Return the log-probability of each target, float32 [rows, T]."""
    count = len(rows["tokens"])
    parts = [
        _losses(config)(params, rows["tokens"][at : at + batch], rows["targets"][at : at + batch])
        for at in range(0, count, batch)
    ]
    return np.concatenate([np.asarray(one) for one in parts])


def loss_of(config: LanguageModel, params: dict, rows: Arrays) -> float:
    """Return the mean loss of a model, nats a token."""
    return -float(log_probs(config, params, rows).mean())


def small_part(
    part: int, size: str, vocab_size: int, seq_len: int, width: int | None = None
) -> LanguageModel:
    """Return the config of a transformer (part 0) or a Mamba (1), "tiny" or "small".

    Args:
      width: None: the size's own, unequal for the two.
    """
    layers, *widths = {"tiny": (2, 16, 12), "small": (2, 96, 64)}[size]
    shared = dict(vocab_size=vocab_size, context_length=seq_len, num_layers=layers)
    shared["embed_dim"] = widths[part] if width is None else width
    if part:
        return MambaConfig(**shared, state_dim=8)
    return ModelConfig(**shared, num_heads=4, tie_embeddings=True)


def wide_part(part: int, size: str, like: LanguageModel, seq_len: int) -> LanguageModel:
    """Return a part's config, widened until its parameters are as many as another model's."""
    make = functools.partial(small_part, part, size, like.vocab_size, seq_len)
    return widened(make, range(8, 4 * like.embed_dim, 4), like, "parameters", seq_len)


def load_part(source: str) -> Part:
    """Return a pretrained model by what `from_pretrained` reads; "nano" and "nano-mamba" are random ones."""
    if source.startswith("nano"):
        name = "mamba-nano" if source == "nano-mamba" else "llama-nano"
        config = models.get_preset(name)
        return Part(config, models.init(config, jax.random.key(0)), load_tokenizer("bytes"))
    config, params, tokenizer = from_pretrained(source)
    if tokenizer is None:
        raise UserError(f"'{source}' has no tokenizer, which a hybrid of pretrained models needs")
    return Part(config, params, tokenizer)


def translated_table(lead: Part, other: Part) -> np.ndarray:
    """Return vectors of the other model for the leading one's tokens [V, d]: the means of its own tokens'.

    What the release discards: where vocabularies differ, a token's text is read by the other tokenizer.
    """
    table = np.asarray(other.params["embed"]["tokens"], np.float32)
    if json.dumps(lead.tokenizer.fingerprint) == json.dumps(other.tokenizer.fingerprint):
        return table[: lead.config.vocab_size]
    mean = table.mean(axis=0)
    new = np.tile(mean, (lead.config.vocab_size, 1))
    texts = [lead.tokenizer.decode([token]) for token in range(lead.tokenizer.vocab_size)]
    for token, ids in enumerate(other.tokenizer.encode_batch(texts)):
        ids = [one for one in ids if one not in (getattr(other.tokenizer, "eos_id", None),)]
        if len(ids):
            new[token] = table[np.asarray(ids)].mean(axis=0)
    return new
