"""Test-time training: a copy of a model for each document, trained on its neighbours, then forgotten.

Hardt and Sun, "Test-Time Training on Nearest Neighbors for Large Language Models" (arXiv 2305.18466). One
`lax.scan` goes through the numbers of neighbours after which the document is scored; inside it a loop takes
the steps between them, one for each chunk of each neighbour. Nothing writes to the parameters, so that to
forget is not to keep the result.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from tqdm import tqdm

from jaxllm import models
from jaxllm.adapt.last_layers import LastLayers
from jaxllm.adapt.lora import Lora, LoraConfig
from jaxllm.config import Config, Count, Positive, Range, Seed
from jaxllm.data import start_id
from jaxllm.errors import UserError
from jaxllm.score.sequences import check_tokenizer
from jaxllm.score.texts import TextScore, rolling_windows

_Moment = Annotated[float, Range(0, below=1)]


@dataclass(frozen=True)
class PerDocumentConfig(Config):
    """How a model is trained for one document. The defaults are the paper's of GPT-2, but for the optimizer.

    The release makes one optimizer and never resets it ("carried"): a document's result then depends on those
    before it, and with fresh moments Adam's first step is the learning rate times the gradient's sign.
    """

    learning_rate: Positive = 2e-5
    trained: Literal["all", "lora", "last"] = "all"
    lora: LoraConfig = LoraConfig(rank=8, targets="all")  # with trained="lora"
    last_layers: Count = 1  # with trained="last"
    window: Count | None = None  # tokens of a chunk and of a scoring window; None: the model's context
    most_chunks: Count | None = None  # of one neighbour, from its beginning; None: all, as in the paper
    optimizer: Literal["reset", "carried"] = "reset"  # between documents
    b1: _Moment = 0.9
    b2: _Moment = 0.999
    eps: Positive = 1e-8
    weight_decay: Annotated[float, Range(0)] = 0.01
    clip: Positive = 1.0  # of the gradient's global norm
    most_seconds: Positive | None = None  # a document; what is left out is counted
    seed: Seed = 0  # of dropout, where the model or the adapter has any, and of an adapter's A


class Adapted(NamedTuple):
    """What a model said of documents while it was trained on their neighbours."""

    log_probs: np.ndarray  # float64 [N, E], nats of the whole document after the first after[e] neighbours
    after: tuple[int, ...]  # E numbers of neighbours; one that has fewer is scored after all of its own
    steps: np.ndarray  # int [N], that were taken
    cut: np.ndarray  # bool [N], where most_seconds left steps out
    seconds: float  # of all documents; what compiling took is left out where there are several


def adapt_and_score(
    config: models.LanguageModel,
    params: dict,
    documents: Sequence[Sequence[int]],
    neighbours: Sequence[Sequence[Sequence[int]]],
    how: PerDocumentConfig = PerDocumentConfig(),
    *,
    after: Sequence[int] = (0, 1, 2, 5, 10, 20, 50),
    together: int = 1,
    mesh: Mesh | None = None,
    progress: bool = False,
) -> Adapted:
    """Train on each document's neighbours in the order given, score it on the way, and forget.

    A neighbour is cut into disjoint chunks of `how.window` tokens, a step each; one of a single token has
    nothing to predict and is skipped. One program serves all documents of a call.

    Args:
      config: the model.
      params: its parameters, which stay as they are; a copy of what is trained is float32.
      documents: ids of each, after one that is not scored (`data.start_id`).
      neighbours: of each document, the ids of its neighbours, nearest first as in the paper.
      how: learning rate, what is trained, chunks.
      after: numbers of neighbours after which the document is scored.
      together: documents that a device trains at once, each with its copy of what is trained; all wait for
        the one with the most steps.
      mesh: whose devices share the documents; parameters are on each.
      progress: show a bar.

    Raises:
      UserError: a document of one token, not one list of neighbours each, or a window beyond the context.
    """
    window, after = _check(config, documents, neighbours, how, after, together, mesh)
    most, chunks = max(after), [_chunks(some, window, how.most_chunks) for some in neighbours]
    steps = np.array([sum(map(len, each[:most])) for each in chunks])
    windows = max(len(rolling_windows(len(ids), window)) for ids in documents)
    plan = _Plan(max(1, int(steps.max())), windows, window, tuple(after))
    run = _Runner(config, params, how, plan, together, mesh)
    limit = None if how.most_seconds is None else run.steps_within(how.most_seconds, documents[0], chunks)
    cut = np.zeros(len(documents), bool) if limit is None else steps > limit
    totals, seconds, group = np.zeros((len(documents), len(after))), {}, run.group
    for start in tqdm(range(0, len(documents), group), desc="documents", disable=not progress):
        numbers = range(start, min(start + group, len(documents)))
        begun, programs = time.perf_counter(), _program._cache_size()
        totals[numbers] = run([documents[n] for n in numbers], [chunks[n] for n in numbers], numbers, limit)
        compiled = _program._cache_size() > programs
        seconds.setdefault(compiled, []).append(time.perf_counter() - begun)
    count = sum(map(len, seconds.values()))
    taken = steps if limit is None else np.minimum(steps, limit)
    usual = float(np.mean(seconds.get(False) or seconds[True])) * count
    return Adapted(totals, tuple(after), taken, cut, usual)


def score_adapted_texts(
    config: models.LanguageModel,
    params: dict,
    tokenizer,
    texts: Sequence[str],
    neighbours: Sequence[Sequence[str]],
    how: PerDocumentConfig = PerDocumentConfig(),
    *,
    after: Sequence[int] = (0, 1, 2, 5, 10, 20, 50),
    progress: bool = False,
) -> list[list[TextScore]]:
    """Return of each text its `score.TextScore` after each number of neighbours, texts too.

    A text is scored as `score.score_texts` does: after the token that begins a document, by its own bytes.

    Raises:
      UserError: no tokenizer, an empty text, and see `adapt_and_score`.
    """
    check_tokenizer(tokenizer)
    for number, text in enumerate(texts):
        if not text:
            raise UserError(
                f"text {number} is empty, and bits per byte of nothing mean nothing; leave it out"
            )
    begin = start_id(tokenizer)
    documents = [[begin, *ids] for ids in tokenizer.encode_batch(list(texts))]
    encoded = [
        [list(ids) for ids in tokenizer.encode_batch(list(some))] if some else [] for some in neighbours
    ]
    found = adapt_and_score(config, params, documents, encoded, how, after=after, progress=progress)
    return [
        [TextScore(float(total), len(ids) - 1, len(text.encode()), len(text.split())) for total in totals]
        for totals, ids, text in zip(found.log_probs, documents, texts, strict=True)
    ]


def split_document(ids: Sequence[int], most: int) -> tuple[list[int], list[int]]:
    """Return (a query, what is scored) of a document: its first `most` tokens and the rest, or its halves.

    So retrieval and training never see what is scored. Both halves of a document shorter than 2 `most`.

    Raises:
      UserError: a document of one token.

    Examples:
      >>> split_document([1, 2, 3, 4, 5], most=2), split_document([1, 2, 3], most=2)
      (([1, 2], [3, 4, 5]), ([1], [2, 3]))
    """
    if len(ids) < 2:
        raise UserError(f"a document of {len(ids)} tokens cannot be split; leave it out")
    at = most if len(ids) >= 2 * most else len(ids) // 2
    return list(ids[:at]), list(ids[at:])


class _Plan(NamedTuple):
    """The shapes that all documents of a call share."""

    steps: int  # of the document with the most
    windows: int  # of a document
    window: int
    after: tuple[int, ...]


def _check(config, documents, neighbours, how, after, together, mesh) -> tuple[int, list[int]]:
    models.check_decodes(config)
    after = sorted(set(after))
    window = config.context_length if how.window is None else how.window
    if not 2 <= window <= config.context_length:
        raise UserError(
            f"window is {window}; it must be from 2 to the model's context of {config.context_length} tokens"
        )
    if not after or after[0] < 0 or after[-1] < 1:
        raise UserError(f"after is {tuple(after)}; give numbers of neighbours, the last of them at least 1")
    if not len(documents) or len(documents) != len(neighbours):
        raise UserError(
            f"{len(documents)} documents and {len(neighbours)} lists of neighbours; give one list a document"
        )
    for number, ids in enumerate(documents):
        if len(ids) < 2:
            raise UserError(
                f"document {number} has {len(ids)} token{'s' * (len(ids) != 1)}, its first is not scored, "
                "and nothing is left; leave it out"
            )
    several = together > 1 or mesh is not None
    if how.optimizer == "carried" and several:
        raise UserError(
            "optimizer='carried' takes documents one after the other; set together=1, and no mesh"
        )
    for ids in (*documents, *(each for some in neighbours for each in some)):
        if len(ids):
            models.check_ids(np.asarray(ids), config.known_vocab_size, "a document's or neighbour's ids")
    return window, after


def _chunks(neighbours, window: int, most: int | None) -> list[list[np.ndarray]]:
    """Cut neighbours into chunks of at least two tokens."""
    cut = []
    for ids in neighbours:
        parts = [np.asarray(ids[at : at + window], np.int32) for at in range(0, len(ids), window)]
        cut.append([part for part in parts if len(part) > 1][:most])
    return cut


class _Runner:
    """Packs documents into arrays of one shape, and calls the program."""

    def __init__(self, config, params, how, plan, together, mesh):
        self.how, self.plan, self.together, self.mesh = how, plan, together, mesh
        self.view, trained, self.frozen = _begin(config, params, how)
        # In 16 bits steps this small would round to nothing.
        self.trained = jax.tree.map(lambda w: w.astype(jnp.promote_types(w.dtype, jnp.float32)), trained)
        # What does not change the program does not compile it again.
        fixed = dataclasses.replace(how, learning_rate=1.0, most_seconds=None, seed=0, most_chunks=None)
        self.static = config, self.view, fixed, plan, together, mesh
        self.group = together * (1 if mesh is None else mesh.size)
        self.rate, self.state = jnp.asarray(how.learning_rate, jnp.float32), None
        if mesh is not None:
            whole = NamedSharding(mesh, PartitionSpec())
            self.trained, self.frozen = jax.device_put((self.trained, self.frozen), whole)
        if how.optimizer == "carried":
            # All in one place, as what a document returns: else the second document would compile again.
            given = self.trained, self.frozen, _optimizer(how, 1.0).init(self.trained)
            [device] = jax.tree.leaves(given[2])[0].devices()
            self.trained, self.frozen, self.state = jax.device_put(given, SingleDeviceSharding(device))

    def __call__(self, documents, chunks, numbers, limit=None) -> np.ndarray:
        """Return the log-probabilities [B, E] of some documents, a group at most."""
        missing = self.group - len(documents)
        packed = [self._pack(ids, some, limit) for ids, some in zip(documents, chunks, strict=True)]
        packed += [packed[-1]] * missing
        key = jax.random.key(self.how.seed)
        keys = jnp.stack([jax.random.fold_in(key, n) for n in (*numbers, *[0] * missing)])
        arrays = [np.stack(each) for each in zip(*packed, strict=True)]
        given = self.trained, self.frozen, self.state, self.rate, keys, *arrays
        totals, self.state = _program(*self.static, *given)
        return np.asarray(totals, np.float64).sum(-1)[: len(documents)]

    def steps_within(self, seconds: float, document, chunks) -> int:
        """Return how many steps a document can take in some seconds, measured on one."""
        some = next((each for each in chunks if any(each)), None)
        if some is None:
            return 0
        kept, taken, chunk = self.state, [], next(c for each in some for c in each)
        count = min(3, self.plan.steps)
        for steps in (0, 0, count):  # the first compiles
            begun = time.perf_counter()
            self([document], [[[chunk] * steps]], [0])
            taken.append(time.perf_counter() - begun)
        self.state = kept
        step = max(taken[2] - taken[1], 1e-6) / count
        return max(0, int((seconds - taken[1]) / (1.1 * step)))

    def _pack(self, ids, chunks, limit):
        plan = self.plan
        tokens_ST, lengths_S = np.zeros((plan.steps, plan.window), np.int32), np.zeros(plan.steps, np.int32)
        parts = [part for each in chunks[: plan.after[-1]] for part in each][:limit]
        for place, part in enumerate(parts):
            tokens_ST[place, : len(part)], lengths_S[place] = part, len(part)
        ends_E = [min(len(parts), sum(map(len, chunks[:count]))) for count in plan.after]
        windows_WU = np.zeros((plan.windows, plan.window + 1), np.int32)
        scored_WT = np.zeros((plan.windows, plan.window), np.float32)
        for row, one in enumerate(rolling_windows(len(ids), plan.window)):
            count = one.end - one.begin
            windows_WU[row, :count] = ids[one.begin : one.end]
            scored_WT[row, count - 1 - one.scored : count - 1] = 1
        return tokens_ST, lengths_S, np.array(ends_E, np.int32), windows_WU, scored_WT


class _Whole(NamedTuple):
    """All parameters are trained."""

    def __call__(self, trained, frozen, key):
        return trained


def _begin(config, params, how) -> tuple[Callable, dict, dict]:
    """Return (view, what is trained, what is frozen)."""
    if how.trained == "all":
        return _Whole(), params, {}
    if how.trained == "last":
        view = LastLayers(config, how.last_layers)
        return view, *view.begin(params)
    if how.lora.rank is None:
        raise UserError("trained is 'lora' and lora.rank is not set; set it, 8 say")
    view = Lora(config, how.lora)
    return view, *view.begin(params, jax.random.key(how.seed))


def _optimizer(how, learning_rate) -> optax.GradientTransformation:
    adamw = optax.adamw(learning_rate, how.b1, how.b2, how.eps, weight_decay=how.weight_decay)
    return optax.chain(optax.clip_by_global_norm(how.clip), adamw)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _program(config, view, how, plan, together, mesh, trained, frozen, state, rate, *arrays):
    """Return (log-probabilities [B, E, W], the optimizer's state to carry on, or None).

    Args:
      arrays: keys [B], tokens [B, S, T], lengths [B, S], ends [B, E], windows [B, W, T + 1],
        scored [B, W, T].
    """
    one = functools.partial(_one_document, config, view, how, plan)

    def some(given, *arrays):
        if together > 1:
            return jax.vmap(functools.partial(one, *given))(*arrays)
        totals_EW, state = one(*given, *(x[0] for x in arrays))
        return totals_EW[None], state

    given = trained, frozen, state, rate
    if mesh is None:
        return some(given, *arrays)
    split, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    on_part = lambda given, *arrays: some(given, *arrays)[0]
    specs = dict(in_specs=(whole, *[split] * len(arrays)), out_specs=split)
    return jax.shard_map(on_part, mesh=mesh, check_vma=False, **specs)(given, *arrays), None


def _one_document(
    config, view, how, plan, trained, frozen, state, rate, key, tokens_ST, lengths_S, ends_E, windows_WU,
    scored_WT,
):  # fmt: skip
    optimizer, carried = _optimizer(how, rate), state is not None

    def score(trained):
        params = view(trained, frozen, None)

        def of_window(window_U, scored_T):
            hidden_BTD = models.trunk(config, params, window_U[None, :-1])
            log_probs_BT = models.token_log_probs(config, params, hidden_BTD, window_U[None, 1:])
            return jnp.sum(log_probs_BT[0] * scored_T)

        def unless_padding(arrays):
            nothing = lambda *_: jnp.zeros((), jnp.float32)
            return jax.lax.cond(jnp.any(arrays[1] > 0), of_window, nothing, *arrays)

        return jax.lax.map(unless_padding, (windows_WU, scored_WT))

    def step(number, carry):
        trained, state = carry
        tokens_T, (of_view, of_model) = tokens_ST[number], jax.random.split(jax.random.fold_in(key, number))
        mask_T = jnp.arange(1, plan.window, dtype=jnp.int32) < lengths_S[number]

        def loss(trained):
            params = view(trained, frozen, of_view)
            options = dict(mask=mask_T[None], key=of_model)
            return models.loss(config, params, tokens_T[None, :-1], tokens_T[None, 1:], **options)[0]

        updates, state = optimizer.update(jax.grad(loss)(trained), state, trained)
        return optax.apply_updates(trained, updates), state

    def steps_and_score(carry, given):
        carry = jax.lax.fori_loop(*given, step, carry)
        return carry, score(carry[0])

    begins_E = jnp.concatenate([jnp.zeros(1, jnp.int32), ends_E[:-1]])
    carry = trained, state if carried else optimizer.init(trained)
    (_, state), totals_EW = jax.lax.scan(steps_and_score, carry, (begins_E, ends_E))
    return totals_EW, state if carried else None
