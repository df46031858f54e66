"""Groups of a vocabulary's tokens, and heads of groups fitted to trained models.

Start with `vocab_order(name, tokenizer)` (one of `VOCAB_ORDERS`), whose neighbours share a group: what
`--vocab-groups merge_tree` does for a run. `to_grouped_head` and `fit_head` give a trained model such a
head, `to_dense_head` the plain one back.

The head itself is `models.grouped_head`.
"""

from jaxllm.vocabulary.convert_head import (
    fit_head,
    similar_groups,
    similar_slots,
    to_dense_head,
    to_grouped_head,
)
from jaxllm.vocabulary.vocab_order import VOCAB_ORDERS, parse_groups, vocab_order

__all__ = [
    "VOCAB_ORDERS",
    "fit_head",
    "parse_groups",
    "similar_groups",
    "similar_slots",
    "to_dense_head",
    "to_grouped_head",
    "vocab_order",
]
