"""ListOps: nested lists of digits under MAX, MIN, MED and SM (the sum modulo 10), to be worked out.

Nangia and Bowman, arXiv 1804.06028; longer in the Long Range Arena (Tay et al., arXiv 2011.04006), by whose
rules trees are drawn: a node is a list with a chance of a quarter and a digit otherwise, a list has two to
`most_arguments` members, below `depth` levels all are digits, and a tree is kept if its length fits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np

from jaxllm.config import Config, Count, Range
from jaxllm.errors import UserError, bare

OPERATORS = ("[MAX", "[MIN", "[MED", "[SM")
END, PAD = 14, 15  # ids: digits are 0 to 9, operators 10 to 13
VOCAB_SIZE = 18  # the paper's table has room for two more: original items' parentheses, which are left out
_LIST_CHANCE = 0.25
_IDS = {str(digit): digit for digit in range(10)} | {name: 10 + n for n, name in enumerate(OPERATORS)}
_IDS["]"] = END


@dataclass(frozen=True)
class ListOpsConfig(Config):
    """How trees are drawn. The defaults are the Long Range Arena's.

    Examples:
      >>> items = draw_listops(ListOpsConfig(shortest=5, longest=12), 2, seed=0)
      >>> [listops_text(item.tokens) for item in items], [item.value for item in items]
      (['[MIN [MAX 6 7 ] 3 3 6 7 ]', '[MIN 1 3 3 0 9 2 3 7 3 ]'], [3, 0])
    """

    shortest: Count = 500  # tokens, END included
    longest: Count = 2000
    most_arguments: Annotated[int, Range(2)] = 10  # of a list
    depth: Annotated[int, Range(2, 200)] = 10  # levels, that of digits alone included

    def __post_init__(self):
        super().__post_init__()
        if self.longest < max(self.shortest, 4):
            raise UserError(
                f"longest is {self.longest} and shortest {self.shortest}; a list has 4 tokens or more, and "
                "longest is no less than shortest"
            )


class ListOps(NamedTuple):
    """An expression, its value, and how deep lists lie in it."""

    tokens: tuple[int, ...]
    value: int
    depth: int  # 1: a list of digits


def draw_listops(config: ListOpsConfig, items: int, seed: int) -> list[ListOps]:
    """Return expressions, all different: a pure function of its arguments.

    Raises:
      UserError: hardly any tree fits the lengths.
    """
    draw, found, tries = np.random.default_rng(seed), {}, 0
    while len(found) < items:
        tries += 1
        if tries > 10_000 * items:
            raise UserError(
                f"of {tries:,} trees {len(found)} have {config.shortest} to {config.longest} tokens; allow "
                "more depth, more arguments or other lengths"
            )
        tokens: list[int] = []
        if _grow(config, draw, tokens, 1) and len(tokens) >= max(4, config.shortest):
            found[tuple(tokens)] = None
    return [ListOps(tokens, *evaluate_listops(tokens)) for tokens in found]


def _grow(config, draw, tokens, level) -> bool:
    """Append a tree, a list at the first level; return False once it is too long."""
    if level > 1 and (level >= config.depth or draw.random() >= _LIST_CHANCE):
        tokens.append(int(draw.integers(10)))
        return len(tokens) <= config.longest
    tokens.append(10 + int(draw.integers(len(OPERATORS))))
    for _ in range(int(draw.integers(2, config.most_arguments, endpoint=True))):
        if not _grow(config, draw, tokens, level + 1):
            return False
    tokens.append(END)
    return len(tokens) <= config.longest


def evaluate_listops(tokens: Sequence[int]) -> tuple[int, int]:
    """Return an expression's value and the depth of its lists.

    The median of an even number of digits is the mean of the middle two, rounded down, as published.

    Examples:
      >>> evaluate_listops(read_listops("[SM 9 [MED 1 2 4 9 ] ]"))
      (2, 2)
    """
    lists: list[tuple[int, list[int]]] = []
    depth, value = 0, None
    for token in tokens:
        if token in range(10, END):
            lists.append((token, []))
            depth = max(depth, len(lists))
            continue
        if token == END and lists:
            operator, members = lists.pop()
            if not members:
                break
            done = (max, min, _median, lambda digits: sum(digits) % 10)[operator - 10](members)
        elif token in range(10):
            done = token
        else:
            break
        if not lists:
            if value is not None:
                break
            value = done
        else:
            lists[-1][1].append(done)
    else:
        if value is not None and not lists:
            return value, depth
    raise UserError(
        f"'{bare(listops_text(tokens))}' is no expression of ListOps; give one whose lists hold members and "
        "are all closed"
    )


def _median(digits: list[int]) -> int:
    ordered, half = sorted(digits), len(digits) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) // 2


def read_listops(text: str) -> tuple[int, ...]:
    """Return the ids of an expression; parentheses, which the original items hold, are left out.

    Examples:
      >>> read_listops("( ( [MAX 6 ) 5 ) ]")
      (10, 6, 5, 14)
    """
    words = [word for word in text.split() if word not in "()"]
    for word in words:
        if word not in _IDS:
            raise UserError(f"'{bare(word)}' is no word of ListOps; it has {' '.join(_IDS)}")
    return tuple(_IDS[word] for word in words)


def listops_text(tokens: Sequence[int]) -> str:
    """Return an expression in words."""
    names = {number: word for word, number in _IDS.items()}
    return " ".join(names.get(int(token), "?") for token in tokens)
