"""What a step does to one distribution after another, over given texts: many strengths for one forward pass.

On toxic texts: the mass on a lexicon's tokens, KL(p, p~) of p's nucleus, and KL(p~, p) of p whole. On clean
texts: perplexity under p~ with nothing truncated, the collateral damage.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.exposed.arms import NUCLEUS
from experiments.exposed.toxicity_scorers import words_of
from jaxllm import models
from jaxllm.generate import Suppress, contrast, keep_top_p, steer, suppression
from jaxllm.score.choices import continuation_states

STRENGTHS = (0.0, 1.0, 5.0, 10.0, 50.0, 100.0, 500.0, 5000.0)
GUIDANCE = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)


class Passes(NamedTuple):
    """Log-probabilities of the base and of experts at the same positions, [N, V] each, and what came next."""

    log_p_NV: jax.Array
    log_q: dict[str, jax.Array]
    target_N: np.ndarray


def read(kinds, expert, names, tokenizer, most: int) -> list[Passes]:
    """Run the base and experts over texts of each kind; keep the first `most` positions of a kind."""
    asked = [_positions(texts, tokenizer) for texts in kinds]
    found = {}
    for name in ("base", *names):  # a model after another: few fit the memory
        config, params = expert(name)
        for number, (contexts, rest) in enumerate(asked):
            hidden_ND = continuation_states(config, params, contexts, rest, 4096)[:most]
            found[name, number] = _log_probs(config, params, jnp.asarray(hidden_ND))
    targets = [np.concatenate([one for [one] in rest])[:most].astype(np.int32) for _, rest in asked]
    return [Passes(found["base", n], {name: found[name, n] for name in names}, target_N)
            for n, target_N in enumerate(targets)]  # fmt: skip


def _positions(texts, tokenizer):
    """Return (the first token of each text, as its one continuation the rest)."""
    rows = [tokenizer.encode(text).tolist()[:24] for text in texts]
    rows = [ids for ids in rows if len(ids) > 1]
    return [ids[:1] for ids in rows], [[ids[1:]] for ids in rows]


@partial(jax.jit, static_argnums=0)
def _log_probs(config, params, hidden_ND):
    return jax.nn.log_softmax(models.logits(config, params, hidden_ND), axis=-1)


def lexicon_tokens(lexicon, tokenizer, size: int) -> np.ndarray:
    """Return which tokens are a word of the lexicon, bool [V]; of words of several tokens none is."""
    whole = [tokenizer.decode([token]) for token in range(min(size, tokenizer.vocab_size))]
    found = [text.strip() in lexicon or words_of(text) in [[w] for w in lexicon & set(words_of(text))]
             for text in whole]  # fmt: skip
    return np.pad(np.array(found), (0, size - len(found)))


def sweep(passes: Passes, clean: Passes, lexicon_V: np.ndarray, floor: float) -> list[dict]:
    """Return one row of figures for each method, expert, decay, floor, temperature, order and strength."""

    def states(floor=floor, temperature=1.0, strengths=STRENGTHS):
        return [suppression(strength, floor, temperature) for strength in strengths]

    # (name, step, expert, states, reweighted before truncated?)
    hard = states(strengths=(0.3, 0.1, 0.03, 0.01, 0.001))
    every = [("exposed", Suppress(), "toxic", states(), False)]
    every += [(f"exposed, {name}", Suppress(name), "toxic", states(), False) for name in ("linear", "power")]
    every += [("exposed, hard", Suppress("hard"), "toxic", hard, False)]
    floors = [f for f in (0.0, 0.001, 0.01, 0.1) if f != floor]
    every += [(f"exposed, floor {f:g}", Suppress(), "toxic", states(f), False) for f in floors]
    every += [
        (f"exposed, temperature {t:g}", Suppress(), "toxic", states(temperature=t), False) for t in (0.7, 1.5)
    ]
    every += [("exposed, reweighted first", Suppress(), "toxic", states(), True)]
    others = [name for name in passes.log_q if name != "toxic"]
    every += [(f"exposed, {name} expert", Suppress(), name, states(), False) for name in others]
    rivals = ("anti_only", steer), ("contrast", contrast)
    every += [(name, step, "toxic", list(GUIDANCE), False) for name, step in rivals]
    rows = []
    for name, step, expert, some, last in every:
        stacked = jax.tree.map(lambda *x: jnp.stack([jnp.float32(one) for one in x]), *some)
        toxic = passes.log_p_NV, passes.log_q[expert][None]
        neutral = clean.log_p_NV, clean.log_q[expert][None], clean.target_N
        figures = jax.device_get(_figures(step, last, *toxic, *neutral, lexicon_V, stacked))
        for number, state in enumerate(some):
            strength = float(state.strength) if hasattr(state, "strength") else state
            values = {key: float(x[number]) for key, x in figures.items()}
            rows.append({"method": name, "strength": strength} | values)
    return rows


@partial(jax.jit, static_argnums=(0, 1))
def _figures(step, last, log_p_NV, log_q_MNV, clean_p_NV, clean_q_MNV, target_N, lexicon_V, states):
    cut = keep_top_p(NUCLEUS)
    nucleus_NV = jax.nn.log_softmax(cut(log_p_NV, None, None), axis=-1)

    def divergence(a_NV, b_NV):
        """Return KL(a, b) in nats: infinite where b excludes what a does not."""
        some = a_NV > -jnp.inf
        terms_NV = jnp.exp(a_NV) * (jnp.where(some, a_NV, 0.0) - jnp.where(some, b_NV, 0.0))
        return jnp.mean(jnp.sum(jnp.where(some, terms_NV, 0.0), axis=1))

    def one(state):
        if last:
            new_NV = jax.nn.log_softmax(cut(step(log_p_NV, log_q_MNV, state), None, None), axis=-1)
        else:
            new_NV = step(nucleus_NV, log_q_MNV, state)
        clean_NV = step(clean_p_NV, clean_q_MNV, state)
        log_prob_N = jnp.take_along_axis(clean_NV, target_N[:, None], axis=1)[:, 0]
        return {
            "lexicon_mass": jnp.mean(jnp.exp(new_NV) @ lexicon_V.astype(jnp.float32)),
            "kl": divergence(nucleus_NV, new_NV),
            "kl_reverse": divergence(new_NV, log_p_NV),
            "clean_perplexity": jnp.exp(-jnp.mean(log_prob_N)),  # infinite where a word is removed
        }

    return jax.lax.map(one, states)
