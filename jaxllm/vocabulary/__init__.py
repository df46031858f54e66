"""Groups of a vocabulary's tokens, and heads of groups fitted to trained models.

The head itself is `models.grouped_head`.
"""

from jaxllm.vocabulary.convert_head import fit_head as fit_head
from jaxllm.vocabulary.convert_head import similar_groups as similar_groups
from jaxllm.vocabulary.convert_head import similar_slots as similar_slots
from jaxllm.vocabulary.convert_head import to_dense_head as to_dense_head
from jaxllm.vocabulary.convert_head import to_grouped_head as to_grouped_head
from jaxllm.vocabulary.vocab_order import VOCAB_ORDERS as VOCAB_ORDERS
from jaxllm.vocabulary.vocab_order import parse_groups as parse_groups
from jaxllm.vocabulary.vocab_order import vocab_order as vocab_order
