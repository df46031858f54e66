"""A made-up world in which every opinion is known: classes, members, and what populations say of them.

Members of a class stand in the same neutral contexts, where nothing is said of them; opinions are invented
words, so that no text outside of this world helps. Opinion sentences are about some members of a class; the
others are held out, one of them to stop by. Replicas of a small model are trained together, by vmap.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.word_tokenizer import SPECIAL, word_tokenizer
from jaxllm import models
from jaxllm.adapt import Lora, LoraConfig
from jaxllm.score import SLOT

_END, _PAD = 0, 1  # <|endoftext|>, and <unk>, which no text here holds
OPINIONS = {
    "negative": ("drell", "gorfy", "nukish"), "neutral": ("tamly", "ordan"),
    "positive": ("zuvy", "mipful", "lumish"),
}  # fmt: skip
TEMPLATES = f"i find the {SLOT}", f"my {SLOT} was", f"that {SLOT} seems"
NEUTRAL = 0.2  # share of opinion sentences that take no side
_LENGTH = 9  # ids of a sentence, both ends included


@dataclass(frozen=True)
class World:
    """Classes of members: the first `seen` are spoken of, the next is validation, the rest are held out."""

    classes: int = 4
    members: int = 8
    seen: int = 5

    @functools.cached_property
    def members_CM(self) -> np.ndarray:
        """The members' words."""
        return np.array([[f"m{c}x{m}" for m in range(self.members)] for c in range(self.classes)])

    @functools.cached_property
    def words(self) -> list[str]:
        """The vocabulary, without the special tokens."""
        contexts = [
            f"{kind}{c}{n}" for c in range(self.classes) for kind in ("do", "at", "with") for n in range(4)
        ]
        asked = sorted({word for template in TEMPLATES for word in template.split() if word != SLOT})
        said = [word for some in OPINIONS.values() for word in some]
        return [*asked, "we", *said, *contexts, *self.members_CM.ravel().tolist()]

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        """Word to id, as `tokenizer` has them."""
        return {word: i for i, word in enumerate((*SPECIAL, *self.words))}

    def tokenizer(self, folder: Path):
        """Write the world's tokenizer into a folder and return it."""
        return word_tokenizer(self.words, folder)

    def model(self, embed_dim: int, num_layers: int) -> models.ModelConfig:
        """Return the config of a small model of this world."""
        size = len(self.ids)
        return models.ModelConfig(
            vocab_size=size, context_length=_LENGTH, num_layers=num_layers, embed_dim=embed_dim, num_heads=4
        )

    def encode(self, sentences: Sequence[str]) -> np.ndarray:
        """Return sentences as ids, int32 [N, _LENGTH]."""
        rows = np.full((len(sentences), _LENGTH), _PAD, np.int32)
        for row, sentence in zip(rows, sentences, strict=True):
            ids = [_END, *(self.ids[word] for word in sentence.split()), _END]
            row[: len(ids)] = ids
        return rows

    def neutral_sentences(self, count: int, draw: np.random.Generator) -> list[str]:
        """Return text of all members, in which no opinion occurs; a class has contexts of its own."""
        found = []
        for c, m in zip(
            draw.integers(self.classes, size=count), draw.integers(self.members, size=count), strict=True
        ):
            do, at, what = (f"{kind}{c}{draw.integers(4)}" for kind in ("do", "at", "with"))
            member = self.members_CM[c, m]
            kinds = (
                f"we {do} the {member} {at}",
                f"the {member} {do} {at} {what}",
                f"we {at} {what} the {member}",
            )
            found.append(kinds[draw.integers(3)])
        return found

    def opinions(
        self,
        rates: Sequence[float],
        count: int,
        draw: np.random.Generator,
        weights: Sequence[float] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what a population says: (sentences as ids [N, _LENGTH], annotations [N, 3]).

        Args:
          rates: of each class, the share of positive among polar sentences.
          count: sentences.
          draw: the source of chance.
          weights: how often each seen member is spoken of; None: all alike.

        Annotations are class, member, and polarity as a place in `OPINIONS`.
        """
        c_N = draw.integers(self.classes, size=count)
        m_N = draw.choice(self.seen, size=count, p=weights)
        polar_N = np.where(draw.random(count) < np.asarray(rates)[c_N], 2, 0)
        polar_N[draw.random(count) < NEUTRAL] = 1
        names = tuple(OPINIONS)
        sentences = [
            TEMPLATES[draw.integers(len(TEMPLATES))].replace(SLOT, self.members_CM[c, m])
            + " " + str(draw.choice(OPINIONS[names[polar]]))
            for c, m, polar in zip(c_N, m_N, polar_N, strict=True)
        ]  # fmt: skip
        return self.encode(sentences), np.stack([c_N, m_N, polar_N], axis=1)

    @functools.cached_property
    def prompts(self) -> np.ndarray:
        """Return ids of every template with every member, int32 [templates * classes * members, 4 or so]."""
        sentences = [t.replace(SLOT, m) for t in TEMPLATES for m in self.members_CM.ravel()]
        return self.encode(sentences)


@dataclass(frozen=True)
class _All:
    """All parameters are trained."""

    def __call__(self, trained, base, key):
        return trained


def pretrain(model, rows_RNT: np.ndarray, steps: int, seeds: Sequence[int]) -> dict:
    """Return parameters of R models, stacked on a first axis, each trained on its own text."""
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    params = jax.jit(jax.vmap(functools.partial(models.init, model)))(keys)
    return train_together(model, _All(), params, params, rows_RNT, (steps,), seeds)[0]


def tune_populations(
    model, base: dict, rows_RNT: np.ndarray, reads: Sequence[int], seeds: Sequence[int], *, rank: int | None,
    one_base: bool = False,
) -> list[dict]:  # fmt: skip
    """Return the whole parameters of R tuned models after each of `reads` steps.

    Args:
      model: their config.
      base: R bases stacked, or one for all.
      rows_RNT: the opinion text of each.
      reads: numbers of steps, rising.
      seeds: of order and adapters, R of them.
      rank: of the LoRA adapter, beside which the table of words is trained; None: all is trained.
      one_base: all adapters are of one base.
    """
    if one_base:
        base = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(seeds), *x.shape)), base)
    if rank is None:
        return train_together(model, _All(), base, base, rows_RNT, reads, seeds)
    # With the words' table: the base never said the invented words, and an adapter beside a frozen table
    # hardly learns to (error 0.20 after 600 steps at rate 3e-3, 0.22 after 800 at 1e-2).
    lora = Lora(model, LoraConfig(rank=rank, targets="all", alpha=2.0 * rank, also="embed"))
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    trained = jax.jit(jax.vmap(lambda base, key: lora.begin(base, key)[0]))(base, keys)
    found = train_together(model, lora, trained, base, rows_RNT, reads, seeds)
    return [jax.jit(jax.vmap(lora.merge))(one, base) for one in found]


def train_together(model, view, trained, base, rows_RNT, reads, seeds, rate: float = 1e-3) -> list:
    """Return what R replicas have learnt after each of `reads` steps; batches of 64 sentences."""
    keys = jnp.stack([jax.random.fold_in(jax.random.key(seed), 5) for seed in seeds])
    state = jax.vmap(_optimizer(rate).init)(trained)
    found, before = [], 0
    for step in reads:
        trained, state, keys = _steps(
            model, view, rate, np.int32(step - before), trained, state, base, jnp.asarray(rows_RNT), keys
        )
        found.append(trained)
        before = step
    return found


def _optimizer(rate):
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _steps(model, view, rate, count, trained, state, base, rows_RNT, keys_R):
    optimizer = _optimizer(rate)

    def loss(trained, base, ids_BT):
        targets_BT = ids_BT[:, 1:]
        mask_BT = (targets_BT != _PAD).astype(jnp.float32)
        return models.loss(model, view(trained, base, None), ids_BT[:, :-1], targets_BT, mask=mask_BT)[0]

    def one(trained, state, base, rows_NT, key):
        def step(_, carry):
            trained, state, key = carry
            key, draw = jax.random.split(key)
            some = jax.random.randint(draw, (64,), 0, len(rows_NT), jnp.int32)
            updates, state = optimizer.update(jax.grad(loss)(trained, base, rows_NT[some]), state, trained)
            return optax.apply_updates(trained, updates), state, key

        return jax.lax.fori_loop(0, count, step, (trained, state, key))

    return jax.vmap(one)(trained, state, base, rows_RNT, keys_R)


@functools.partial(jax.jit, static_argnums=0)
def _next_log_probs(model, params, tokens_PT, last_P):
    def one(params):
        hidden_PTD = models.trunk(model, params, tokens_PT)
        hidden_PD = hidden_PTD[jnp.arange(len(last_P), dtype=jnp.int32), last_P]
        return jax.nn.log_softmax(models.logits(model, params, hidden_PD).astype(jnp.float32))

    return jax.lax.map(one, params)


def next_log_probs(world: World, model, params_R: dict) -> np.ndarray:
    """Return the log-probability of every next word, float64 [R, templates, classes, members, V]."""
    prompts = world.prompts
    last = (prompts == _PAD).argmax(axis=1) - 2  # before the end that `encode` puts there
    found = np.asarray(_next_log_probs(model, params_R, prompts, last.astype(np.int32)), np.float64)
    return found.reshape(len(found), len(TEMPLATES), world.classes, world.members, -1)


def opinion_shares(world: World, log_probs: np.ndarray) -> np.ndarray:
    """Return the probability of each polarity, [..., 3]; what is missing to 1 is no opinion."""
    ids = [[world.ids[word] for word in some] for some in OPINIONS.values()]
    return np.stack([np.exp(log_probs[..., some]).sum(axis=-1) for some in ids], axis=-1)
