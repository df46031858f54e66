"""One vector a text, or a piece of it: the mean of a model's hidden states."""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxllm import models
from jaxllm.data import start_id
from jaxllm.data.bpe import HuggingFaceTokenizer
from jaxllm.data.length_batches import length_batches
from jaxllm.data.padded import pad_id
from jaxllm.errors import UserError
from jaxllm.score.sequences import TOKENS_PER_BATCH, check_tokenizer


@dataclass(frozen=True, eq=False)
class Encoder:
    """A model that turns texts into vectors: an encoder such as MiniLM, or any decoder.

    A vector is the mean of the last layer's hidden states over a text's tokens, those that an encoder's
    tokenizer puts around it included. An empty text is read as one space, or a decoder's start token.

    Raises:
      UserError: no tokenizer, or a `longest` that the model has no positions for.

    Examples:
      >>> from jaxllm import data
      >>> config = models.get_preset("gpt2-nano", vocab_size=257, num_layers=1)
      >>> encoder = Encoder(config, models.init(config, jax.random.key(0)), data.load_tokenizer("bytes"))
      >>> encoder.embed(["a text", "another"]).shape
      (2, 64)
    """

    config: models.LanguageModel
    params: dict
    tokenizer: object
    longest: int | None = None  # tokens that are read at once; None: the model's context
    pieces: Literal["beginning", "all"] = "beginning"  # of a longer text: as in the paper, or a vector each
    normalize: bool = True  # vectors of length 1, whose squared distances are 2 - 2 cosine

    def __post_init__(self):
        check_tokenizer(self.tokenizer)
        most = self.config.context_length
        longest = most if self.longest is None else self.longest
        if not 3 <= longest <= most:
            raise UserError(f"longest is {longest}; it must be from 3 to the context of {most} tokens")
        if self.pieces not in ("beginning", "all"):
            raise UserError(f"pieces is {self.pieces!r}; it must be 'beginning' or 'all'")
        object.__setattr__(self, "longest", longest)

    @property
    def width(self) -> int:
        """How many numbers a vector has."""
        return self.config.embed_dim

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of everything that decides a text's vector."""
        digest = hashlib.sha256(repr((self.config, self.longest, self.pieces, self.normalize)).encode())
        digest.update(self.tokenizer.fingerprint.encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(np.asarray(leaf)).view(np.uint8).data)
        return digest.hexdigest()[:32]

    def tokens(self, texts: Sequence[str]) -> list[list[list[int]]]:
        """Return the ids of each text's beginning, or of each of its pieces."""
        if getattr(self.config, "causal", True):  # a Mamba or a hybrid has no such field
            begin, end, empty = [], [], [start_id(self.tokenizer)]
            encoded = [list(ids) or empty for ids in self.tokenizer.encode_batch(list(texts))]
        else:
            begin, end = self._around
            encoded = [list(ids) for ids in self.tokenizer.encode_batch([text or " " for text in texts])]
        room = self.longest - len(begin) - len(end)

        def cut(ids):
            starts = range(0, max(1, len(ids)), room) if self.pieces == "all" else (0,)
            return [[*begin, *ids[start : start + room], *end] for start in starts]

        return [cut(ids) for ids in encoded]

    def embed(
        self, texts: Sequence[str], *, tokens_per_batch: int = TOKENS_PER_BATCH, progress: bool = False
    ) -> np.ndarray:
        """Return the vectors of texts, float32 [N, D], batched by length.

        Args:
          texts: any number; with pieces="all" each must be of one piece (`embed_pieces` takes longer ones).
          tokens_per_batch: what one call of the model computes at most, padding included.
          progress: show a bar.

        Raises:
          UserError: no texts, or a text of several pieces.
        """
        vectors_ND, documents_N = self.embed_pieces(
            texts, tokens_per_batch=tokens_per_batch, progress=progress
        )
        if len(vectors_ND) != len(texts):
            long = int(documents_N[1:][documents_N[1:] == documents_N[:-1]][0])
            raise UserError(
                f"text {long} has more than longest={self.longest} tokens and pieces='all' gives it several "
                "vectors; call embed_pieces, or take pieces='beginning'"
            )
        return vectors_ND

    def embed_pieces(
        self, texts: Sequence[str], *, tokens_per_batch: int = TOKENS_PER_BATCH, progress: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (the vectors of all pieces, float32 [R, D]; which text each is of, int32 [R])."""
        if isinstance(texts, str) or not len(texts):
            raise UserError("no texts to embed; give a list of one text at least")
        pieces = self.tokens(texts)
        rows = [ids for some in pieces for ids in some]
        documents_R = np.repeat(np.arange(len(texts), dtype=np.int32), [len(some) for some in pieces])
        vectors_RD = np.zeros((len(rows), self.width), np.float32)
        pad = pad_id(self.tokenizer)
        with tqdm(total=len(rows), desc="embedded", unit=" texts", disable=not progress) as bar:
            for batch in length_batches([len(ids) for ids in rows], self.longest, tokens_per_batch):
                vectors_BD = _embed(self.config, self._ready, *batch.fill(rows, pad), self.normalize)
                vectors_RD[batch.rows] = np.asarray(vectors_BD)[: len(batch.rows)]
                bar.update(len(batch.rows))
        return vectors_RD, documents_R

    @functools.cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """What an encoder's tokenizer puts before and after a text."""
        if not isinstance(self.tokenizer, HuggingFaceTokenizer):
            return [], []
        text = "a"
        whole, bare = self.tokenizer.encode_pair(text)[0], list(self.tokenizer.encode(text))
        at = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
        return whole[:at], whole[at + len(bare) :]

    @functools.cached_property
    def _ready(self) -> dict:
        # On a CPU a scan over stacked layers would copy each layer at every call.
        if models.is_apart(self.params) or jax.default_backend() != "cpu":
            return self.params
        return models.layers_apart(self.params)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _embed(config, params, tokens_BT, mask_BT, normalize):
    hidden_BTD = models.trunk(config, params, tokens_BT, segment_ids=mask_BT)
    vectors_BD = models.mean_pool(hidden_BTD, mask_BT)
    if not normalize:
        return vectors_BD
    length_B1 = jnp.linalg.norm(vectors_BD, axis=-1, keepdims=True)
    return vectors_BD / jnp.maximum(length_B1, 1e-12)
