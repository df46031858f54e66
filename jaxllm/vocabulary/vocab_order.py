"""Orders of a vocabulary that put related tokens side by side, to be cut into groups.

The rule by which the paper groups BPE's merges could not be read (arXiv 2411.06371): merge_order,
merge_tree and right_parent are what "based on BPE merges" may mean. The others are controls.
"""

import json

import numpy as np

from jaxllm.data.tokenizer import Tokenizer
from jaxllm.errors import UserError, brief, unknown

VOCAB_ORDERS = {
    "merge_order": "by id, which is the order of the merges in GPT-2's and our own BPE",
    "merge_tree": "tokens that begin alike: depth first, each merged token under its left part",
    "right_parent": "tokens that end alike: depth first, each merged token under its right part",
    "frequency": "the tokens of the training text, the most frequent first",
    "random": "drawn from the run's seed: the control that says whether merges matter",
}


def vocab_order(
    name: str, tokenizer: Tokenizer, *, counts: np.ndarray | None = None, seed: int = 0
) -> np.ndarray:
    """Return the ids of a vocabulary in the order of this name, int [V].

    Args:
      name: one of VOCAB_ORDERS.
      tokenizer: whose ids; merge_tree and right_parent read its merges.
      counts: int [V], how often each id occurs; for frequency alone.
      seed: for random alone.

    Raises:
      UserError: an unknown name, a tokenizer without merges, or for frequency no count of each id.

    Examples:
      >>> from jaxllm.data import load_tokenizer
      >>> tokenizer = load_tokenizer("bpe:262", documents=["aa aaa ab aab " * 9])
      >>> order = vocab_order("merge_tree", tokenizer)
      >>> [tokenizer.backend.id_to_token(i) for i in order if i > 256 or i == tokenizer.encode("a")[0]]
      ['a', 'aa', 'ab', 'Ġaa', 'Ġaaa', 'Ġab']
    """
    if name not in VOCAB_ORDERS:
        raise unknown("order of the vocabulary", name, VOCAB_ORDERS)
    V = tokenizer.vocab_size
    if name == "merge_order":
        return np.arange(V)
    if name == "random":
        return np.random.default_rng(seed).permutation(V)
    if name == "frequency":
        if np.shape(counts) != (V,):
            raise UserError(
                f"counts has the shape {np.shape(counts)}, and the order 'frequency' needs that of the "
                f"tokenizer's ids, ({V},); count with np.bincount(ids, minlength={V})"
            )
        return np.argsort(-np.asarray(counts, float), kind="stable")
    return _depth_first(_parents(tokenizer, name, left=name == "merge_tree"))


def parse_groups(spec: str) -> tuple[str, int | None]:
    """Return (order, tokens of a group or None) of "NAME" or "NAME:K".

    Raises:
      UserError: an unknown name, or no number after the colon.

    Examples:
      >>> parse_groups("merge_tree:224"), parse_groups("random")
      (('merge_tree', 224), ('random', None))
    """
    name, colon, slots = spec.partition(":")
    if name not in VOCAB_ORDERS:
        raise unknown("order of the vocabulary", name, VOCAB_ORDERS)
    if colon and not (slots.isdecimal() and 0 < len(slots) < 10):
        raise UserError(
            f"vocab_groups {brief(spec)} has {brief(slots)} where the number of tokens of a group should be; "
            f"write {name} or, for example, {name}:224"
        )
    return name, int(slots) if colon else None


def _parents(tokenizer: Tokenizer, name: str, *, left: bool) -> np.ndarray:
    """Return the left or right part of each merged token, int [V]; -1 for the others."""
    backend = getattr(tokenizer, "backend", None)
    model = {} if backend is None else json.loads(backend.to_str())["model"]
    if not model.get("merges"):
        raise UserError(
            f"the order '{name}' needs the merges of a BPE tokenizer, and this one has none; choose "
            "merge_order, frequency or random"
        )
    ids, parents = model["vocab"], np.full(tokenizer.vocab_size, -1)
    for merge in model["merges"]:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        token = ids.get("".join(parts))
        # A vocabulary converted to BPE can make a token in several ways; the first is the best.
        if token is not None and parents[token] < 0:
            parents[token] = ids.get(parts[0 if left else 1], -1)
    return parents


def _depth_first(parents: np.ndarray) -> np.ndarray:
    children: dict[int, list[int]] = {}
    for token, parent in enumerate(parents.tolist()):
        children.setdefault(parent, []).append(token)
    order, stack = [], children[-1][::-1]
    while stack:
        token = stack.pop()
        order.append(token)
        stack += reversed(children.get(token, []))
    return np.array(order)
