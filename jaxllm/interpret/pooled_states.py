"""One vector a text at every depth of a model, streamed: nothing larger than a batch is in memory."""

import contextlib
import functools
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxllm import models
from jaxllm.atomic import new_file
from jaxllm.data.length_batches import length_batches
from jaxllm.errors import UserError, brief
from jaxllm.interpret.forward_from import check_depth


def pooled_states(
    config: models.LanguageModel,
    params: dict,
    rows: Sequence[Sequence[int]],
    spans: Sequence[tuple[int, int]],
    *,
    depths: Sequence[int] | None = None,
    tokens_per_batch: int = 4096,
    path: str | os.PathLike | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Return the mean residual stream over a span of each text's tokens, float32 [depths, N, D].

    Depth 0 is what enters the first layer, i + 1 what leaves layer i: what `forward_from` takes. A layer is
    reduced where it is computed, and texts of similar length share a batch. With a `path` the result is a
    file that is mapped, so that memory holds one batch of it, whatever N is.

    Args:
      config: a decoder, an encoder or a Mamba.
      params: its parameters.
      rows: token ids of N texts, special tokens included.
      spans: (first, end) of each text's tokens to average; (i, i + 1) is one token.
      depths: which; None: all, 0 to the number of layers.
      tokens_per_batch: what one call computes at most, padding included.
      path: where the result is kept, as .npy, once all of it is there.
      progress: show a bar.

    Raises:
      UserError: no text, ids that the model does not know, a span outside of its text, more tokens than the
        model has positions for, a depth that it does not have, a path that cannot be written.

    Examples:
      >>> config = models.get_preset("gpt2-nano")
      >>> params = models.init(config, jax.random.key(0))
      >>> pooled_states(config, params, [[1, 2, 3], [4, 5]], [(2, 3), (0, 2)]).shape
      (3, 2, 64)
    """
    depths = range(config.num_layers + 1) if depths is None else list(depths)
    for depth in depths:
        check_depth(depth, config.num_layers)
    _check_rows(config, rows, spans)
    shape = (len(depths), len(rows), config.embed_dim)
    chosen_P = jnp.asarray(depths, jnp.int32)
    longest = config.most_positions or 2**31
    both = getattr(config, "causal", True) is False  # an encoder's tokens see padding on the right
    bar = tqdm(total=len(rows), desc="states", unit=" texts", disable=not progress)
    with contextlib.nullcontext() if path is None else new_file(path) as partial, bar:
        if partial is None:
            states_PND = np.empty(shape, np.float32)
        else:
            states_PND = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
        for batch in length_batches([len(row) for row in rows], longest, tokens_per_batch):
            tokens_BT, mask_BT = batch.fill(rows)
            weights_BT = np.zeros(tokens_BT.shape, np.float32)
            for place, row in enumerate(batch.rows):
                first, end = spans[row]
                weights_BT[place, first:end] = 1 / (end - first)
            found = _pooled(config, params, tokens_BT, mask_BT if both else None, weights_BT, chosen_P)
            states_PND[:, batch.rows] = np.asarray(found)[:, : len(batch.rows)]
            bar.update(len(batch.rows))
        if partial is not None:
            states_PND.flush()
    return states_PND if path is None else np.load(path, mmap_mode="r+")


def _check_rows(config, rows, spans) -> None:
    if not len(rows) or len(rows) != len(spans):
        raise UserError(
            f"{len(rows)} texts and {len(spans)} spans were given; give a span for each, one text at least"
        )
    for number, (row, (first, end)) in enumerate(zip(rows, spans, strict=True)):
        if not 0 <= first < end <= len(row):
            raise UserError(
                f"the span of text {number} is ({first}, {end}), and the text has {len(row)} tokens; a span "
                "begins within its text and ends after it begins"
            )
        if config.most_positions is not None and len(row) > config.most_positions:
            raise UserError(
                f"text {number} has {len(row)} tokens and the model {config.most_positions} positions; "
                "shorten it"
            )
        try:
            models.check_ids(np.asarray(row), config.known_vocab_size, f"text {number}'s ids")
        except UserError as error:
            raise UserError(f"{error}; use the model's own tokenizer ({brief(list(row[:4]))} ...)") from error


@functools.partial(jax.jit, static_argnums=0)
def _pooled(config, params, tokens_BT, mask_BT, weights_BT, depths_P):
    def pool(x_BTD):
        return jnp.einsum("btd,bt->bd", x_BTD.astype(jnp.float32), weights_BT)

    def keep(captured, layer):
        return {"pooled": pool(captured["resid_post"])}

    sites = models.Sites(("embed", "resid_post"), keep=keep)
    seen = models.capture(config, params, tokens_BT, sites, segment_ids=mask_BT)[1]
    states_LBD = jnp.concatenate([pool(seen["embed"])[None], seen["pooled"]])
    return states_LBD[depths_P]
