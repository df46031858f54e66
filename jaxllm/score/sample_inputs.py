"""Inputs that a model writes after a few-shot prompt, and the label probabilities after each.

The sampler of generative calibration (Jiang et al. 2023, arXiv 2310.10266). A field is drawn token by token
from the model's own distribution; the first token of any field's marker, a line end, ends it, and the next
field's marker is written in its place. After the label field's marker the labels are read off. Ends of text
are banned, and tokens that hold a line end but begin no marker: the paper bans a double line end, and one of
its kin would break the layout as well.

Sample number n is drawn with a key of its own, whichever row of the batch draws it and however many there
are. A row that has finished one takes the next number, so that no row waits for the longest. All numbers are
finished: stopping at the first L to end would prefer short ones.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm import models
from jaxllm.data.tokenizer import stop_ids
from jaxllm.errors import UserError
from jaxllm.score.few_shot import line_end_ids
from jaxllm.score.prior import Prior, estimate_prior
from jaxllm.score.prompted import FewShotPrompt, bucket

_STEPS = 32  # a call of the compiled program, between which the cache is moved
_LEAST_SLOTS = 128
_BLOCK = 256  # tokens of the vocabulary that are drawn from together
_MOST_MARKERS, _MOST_MARKER_TOKENS = 4, 8  # padded to, so that tasks share programs


@dataclass(frozen=True)
class SampledInputs:
    """Inputs that a model wrote.

    Attributes:
      tokens: ids of each, up to and with the label field's colon, without the first field's marker.
      texts: of each its fields' values.
      log_probs_LY: float64 [L, Y], log p(label | prompt, input) over the whole vocabulary.
      rejected: how many ran past the longest length, and were drawn again.
    """

    tokens: list[list[int]]
    texts: list[list[str]]
    log_probs_LY: np.ndarray
    rejected: int

    @property
    def rejection_rate(self) -> float:
        """The share of what was drawn that was thrown away, which prefers short inputs."""
        return self.rejected / (self.rejected + len(self.tokens))

    def prior(self, *, normalise_each: bool = False) -> Prior:
        """Return the model's own prior; see `estimate_prior`."""
        return estimate_prior(
            self.log_probs_LY, normalise_each=normalise_each, rejection_rate=self.rejection_rate,
            mean_length=float(np.mean([len(ids) for ids in self.tokens])),
        )  # fmt: skip


def sample_inputs(
    prompt: FewShotPrompt,
    count: int = 100,
    *,
    key: jax.Array,
    max_new_tokens: int = 384,
    rows: int = 32,
    most_rejected: int | None = None,
) -> SampledInputs:
    """Draw inputs after a prompt's exemplars, and read the label probabilities after each.

    Args:
      prompt: its exemplars are in the cache already.
      count: how many inputs to keep.
      key: typed random key. The inputs depend on it and on the prompt, not on `rows`.
      max_new_tokens: an input that has not ended after so many, markers included, is drawn again; less where
        the context ends before.
      rows: how many are drawn at once.
      most_rejected: give up after so many; None is four times `count`.

    Raises:
      UserError: a count, a length or rows below 1; a context without room; a recurrent model; or too many
        inputs that do not end.

    Examples:
      >>> from jaxllm import data
      >>> from jaxllm.generate import Decoder
      >>> from jaxllm.score import FewShotTask
      >>> config = models.get_preset("gpt2-nano", vocab_size=257)
      >>> decoder = Decoder(config, models.init(config, jax.random.key(0)))
      >>> task = FewShotTask(("Text", "Tone"), ("bad", "good"))
      >>> prompt = FewShotPrompt(decoder, data.load_tokenizer("bytes"), task, [(["awful"], 0), (["nice"], 1)])
      >>> drawn = sample_inputs(prompt, 2, key=jax.random.key(0), max_new_tokens=100, most_rejected=1000)
      >>> len(drawn.texts), drawn.prior().count
      (2, 2)
    """
    for name, value in (("count", count), ("max_new_tokens", max_new_tokens), ("rows", rows)):
        if value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    if "valid" not in prompt.cache:
        raise UserError(
            "inputs are drawn after a transformer's cache, and this model has a recurrent state, which a row "
            "cannot go back to the end of the prompt in; give a transformer"
        )
    opening = prompt.markers[0]
    longest = min(max_new_tokens, prompt.room - len(opening))
    if longest < 1 + sum(map(len, prompt.markers[1:])):
        raise UserError(
            f"there is room for {max(longest, 0)} tokens after the exemplars, too few for an input and "
            "the markers of its fields; give fewer exemplars, or a larger max_new_tokens"
        )
    most_rejected = 4 * count if most_rejected is None else most_rejected
    decoder, rows = prompt.decoder, min(rows, count)
    machine = _Machine.of(prompt, longest)
    # What a fork shares must stay good: the opening is read into a copy.
    hidden_1TD, cache = decoder.extend(np.array([opening], np.int32), jax.tree.map(jnp.copy, prompt.cache))
    first_V = _logits(*decoder, hidden_1TD[:, -1])[0]
    cache = decoder.fork(cache, [0] * rows, slots=bucket_of(1, longest))
    state = _begin(cache, first_V, rows, count, longest, decoder.config.embed_dim)
    while True:
        state = _draw_steps(*decoder, state, machine, key)
        rejected, sample_B, age_B, slots_used = jax.device_get(
            (state.rejected, state.sample_B, state.age_B, state.own["length"])
        )
        active_B = sample_B < count
        if not active_B.any():
            break
        if rejected > most_rejected:
            finished = int((np.asarray(state.length_L) > 0).sum())
            raise UserError(
                f"{rejected} of {rejected + finished} inputs ({rejected / (rejected + finished):.0%}) ran "
                f"past {longest} tokens without a line end; give other exemplars, a larger "
                "max_new_tokens, or a model that ends its lines"
            )
        live = int(age_B[active_B].max())
        state = _moved(state, int(slots_used) - live, slots=bucket_of(live, longest))
        if rows >= 16 and len(active_B) == rows and 4 * active_B.sum() <= rows:  # the last few
            state = state.select(np.argsort(~active_B, kind="stable")[: rows // 4])
    tokens_LT, length_L, hidden_LD = jax.device_get((state.tokens_LT, state.length_L, state.hidden_LD))
    tokens = [ids[:n].tolist() for ids, n in zip(tokens_LT, length_L, strict=True)]
    if max(map(len, prompt.labels)) == 1:
        log_probs_LY = prompt.first_label_log_probs(hidden_LD)
    else:
        log_probs_LY = prompt.label_log_probs_of_ids([[*opening, *ids] for ids in tokens])
    texts = [_split(prompt, ids) for ids in tokens]
    return SampledInputs(tokens, texts, log_probs_LY, int(rejected))


def bucket_of(live: int, longest: int) -> int:
    """Return the slots that hold the live tokens of a row and those of a call: few sizes."""
    return max(_LEAST_SLOTS, bucket(min(live, longest) + _STEPS))


class _Machine(NamedTuple):
    """The layout's state machine, as arrays that all tasks share the shapes of."""

    marker_GM: Any  # int32: what ends field g
    length_G: Any  # int32: its tokens
    fields: Any  # int32: of an input
    ends_V: Any  # bool: tokens that end a field
    banned_V: Any  # bool
    longest: Any  # int32

    @classmethod
    def of(cls, prompt: FewShotPrompt, longest: int) -> "_Machine":
        markers, V = prompt.markers[1:], prompt.decoder.config.vocab_size
        G = max(_MOST_MARKERS, len(markers))
        M = max(_MOST_MARKER_TOKENS, *map(len, markers))
        marker_GM, length_G = np.zeros((G, M), np.int32), np.ones(G, np.int32)
        for g, ids in enumerate(markers):
            marker_GM[g, : len(ids)], length_G[g] = ids, len(ids)
        ends_V = np.zeros(V, bool)
        ends_V[[ids[0] for ids in markers]] = True
        banned_V = line_end_ids(prompt.tokenizer, V)
        banned_V[[one for one in stop_ids(prompt.tokenizer) if one < V]] = True
        return cls(marker_GM, length_G, np.int32(len(markers)), ends_V, banned_V & ~ends_V, np.int32(longest))


class _State(NamedTuple):
    """What passes from one drawn token to the next. B rows draw L samples."""

    own: dict  # the rows' cache, the prompt aside
    shared: tuple
    first_V: jax.Array  # logits of an input's first token
    logits_BV: jax.Array  # of each row's next token
    sample_B: jax.Array  # the number that a row draws; L: none
    attempt_B: jax.Array  # how often that was rejected before
    age_B: jax.Array  # tokens so far
    field_B: jax.Array
    place_B: jax.Array  # in the marker that is being written; 0: in a field's value
    next_sample: jax.Array
    rejected: jax.Array
    tokens_LT: jax.Array
    length_L: jax.Array  # 0: not finished
    hidden_LD: jax.Array  # after the label field's marker

    def select(self, rows) -> "_State":
        """Return the state of some rows."""
        cache = models.select_rows(self.own | {"shared": self.shared}, rows)
        shared = cache.pop("shared")
        one = {name: value[rows] for name, value in self._asdict().items() if name.endswith(("_B", "_BV"))}
        return self._replace(own=cache, shared=shared, **one)


def _begin(cache, first_V, rows, count, longest, width) -> _State:
    own = {name: value for name, value in cache.items() if name != "shared"}
    zero_B = np.zeros(rows, np.int32)
    return _State(
        own, cache["shared"], first_V, jnp.tile(first_V, (rows, 1)), np.arange(rows, dtype=np.int32),
        zero_B, zero_B.copy(), zero_B.copy(), zero_B.copy(), np.int32(rows), np.int32(0),
        np.zeros((count, longest), np.int32), np.zeros(count, np.int32), np.zeros((count, width), np.float32),
    )  # fmt: skip


@partial(jax.jit, static_argnames="config", donate_argnames="own")
def _steps(config, params, own, rest, machine, key):
    shared, first_V = rest["shared"], rest["first_V"]
    L = len(rest["length_L"])

    def one(carry):
        step, own, s = carry
        drawn_B = _draw(jnp.where(machine.banned_V, -jnp.inf, s["logits_BV"]), key, s)
        is_free_B = s["place_B"] == 0
        ends_B = is_free_B & machine.ends_V[drawn_B]
        forced_B = ends_B | ~is_free_B
        token_B = jnp.where(forced_B, machine.marker_GM[s["field_B"], s["place_B"]], drawn_B)
        place_B = jnp.where(forced_B, s["place_B"] + 1, 0)
        is_marked_B = place_B == machine.length_G[s["field_B"]]
        field_B = s["field_B"] + is_marked_B
        place_B = jnp.where(is_marked_B, 0, place_B)
        age_B = s["age_B"] + 1
        tokens_LT = s["tokens_LT"].at[s["sample_B"], s["age_B"]].set(token_B, mode="drop")

        hidden_B1D, cache = models.decode(config, params, token_B[:, None], own | {"shared": shared})
        own = {name: cache[name] for name in own}
        hidden_BD = hidden_B1D[:, 0]
        logits_BV = models.logits(config, params, hidden_BD).astype(jnp.float32)

        is_active_B = s["sample_B"] < L
        done_B = is_active_B & is_marked_B & (field_B == machine.fields)
        rejected_B = is_active_B & ~done_B & (age_B >= machine.longest)
        finished_B = jnp.where(done_B, s["sample_B"], L)  # L: written nowhere
        length_L = s["length_L"].at[finished_B].set(age_B, mode="drop")
        hidden_LD = s["hidden_LD"].at[finished_B].set(hidden_BD.astype(jnp.float32), mode="drop")
        given_B = s["next_sample"] + jnp.cumsum(done_B, dtype=jnp.int32) - 1
        sample_B = jnp.where(done_B, jnp.minimum(given_B, L), s["sample_B"])
        attempt_B = jnp.where(done_B, 0, s["attempt_B"] + rejected_B)

        anew_B = done_B | rejected_B
        own = own | {"valid": own["valid"] & ~anew_B[:, None]}
        age_B, field_B, place_B = (jnp.where(anew_B, 0, x) for x in (age_B, field_B, place_B))
        field_B = jnp.minimum(field_B, machine.fields - 1)  # of rows that draw nothing
        s = s | dict(
            logits_BV=jnp.where(anew_B[:, None], first_V, logits_BV), sample_B=sample_B, attempt_B=attempt_B,
            age_B=age_B, field_B=field_B, place_B=place_B, tokens_LT=tokens_LT, length_L=length_L,
            hidden_LD=hidden_LD, next_sample=s["next_sample"] + jnp.sum(done_B, dtype=jnp.int32),
            rejected=s["rejected"] + jnp.sum(rejected_B, dtype=jnp.int32),
        )  # fmt: skip
        return step + 1, own, s

    def goes_on(carry):
        return (carry[0] < _STEPS) & jnp.any(carry[2]["sample_B"] < L)

    moving = {name: value for name, value in rest.items() if name not in ("shared", "first_V")}
    _, own, moving = jax.lax.while_loop(goes_on, one, (jnp.int32(0), own, moving))
    return own, moving


def _draw_steps(config, params, state: _State, machine, key) -> _State:
    rest = state._asdict()
    own, moving = _steps(config, params, rest.pop("own"), rest, machine, key)
    return state._replace(own=own, **moving)


def _draw(logits_BV, key, s):
    """Draw a token a row, with a key of the sample, the attempt and the place in it: a block, then one of it.

    The chain rule of one draw from the whole vocabulary, at a hundredth of the random numbers.
    """
    B, V = logits_BV.shape
    blocks_BNK = jnp.pad(logits_BV, ((0, 0), (0, -V % _BLOCK)), constant_values=-jnp.inf).reshape(
        B, -1, _BLOCK
    )

    def of_row(blocks_NK, sample, attempt, age):
        own = key
        for number in (sample, attempt, age):
            own = jax.random.fold_in(own, number)
        for_block, for_token = jax.random.split(own)
        block = jax.random.categorical(for_block, jax.nn.logsumexp(blocks_NK, axis=1))
        return block * _BLOCK + jax.random.categorical(for_token, blocks_NK[block])

    drawn_B = jax.vmap(of_row)(blocks_BNK, s["sample_B"], s["attempt_B"], s["age_B"])
    return drawn_B.astype(jnp.int32)


def _moved(state: _State, by: int, *, slots: int) -> _State:
    move = _move_in_place if slots == state.own["valid"].shape[1] else _move
    return state._replace(own=move(state.own, np.int32(by), slots=slots))


def _without_first(own, by, *, slots):
    """Return a cache of so many slots without the first ones, which no row needs any more."""

    def keys(x):
        x = jnp.roll(x, -by, axis=-2)[..., :slots, :]
        return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, slots - x.shape[-2]), (0, 0)])

    length = own["length"] - by
    valid_BS = jnp.roll(own["valid"], -by, axis=1)[:, :slots]
    valid_BS = jnp.pad(valid_BS, ((0, 0), (0, slots - valid_BS.shape[1])))
    valid_BS = valid_BS & (jnp.arange(slots, dtype=jnp.int32) < length)
    return {
        "key": jax.tree.map(keys, own["key"]), "value": jax.tree.map(keys, own["value"]),
        "valid": valid_BS, "length": length,
    }  # fmt: skip


_move = jax.jit(_without_first, static_argnames="slots")
_move_in_place = jax.jit(_without_first, static_argnames="slots", donate_argnames="own")
_logits = jax.jit(models.logits, static_argnums=0)


def _split(prompt: FewShotPrompt, ids: list[int]) -> list[str]:
    """Return the values of an input's fields."""
    text = prompt.tokenizer.decode(ids)
    values = []
    for marker in prompt.task.markers()[1:]:
        value, _, text = text.partition(marker)
        values.append(value.strip())
    return values
