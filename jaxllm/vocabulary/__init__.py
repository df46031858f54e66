"""Groups of a vocabulary's tokens, and heads of groups fitted to trained models.

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
