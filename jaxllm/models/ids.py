"""Token ids, checked where a model takes them."""

import jax
import numpy as np

from jaxllm.errors import UserError


def check_ids(ids, vocab_size: int, what: str = "tokens") -> None:
    """Check that token ids are whole numbers of a vocabulary; of a traced array only the type is known.

    Args:
      ids: an array.
      vocab_size: one more than the largest id.
      what: what the ids are, for messages. "targets" may be negative, which leaves them out of a loss.

    Raises:
      UserError: fractions, or an id that the vocabulary does not have.

    Examples:
      >>> check_ids(np.array([3, 12]), 10)
      Traceback (most recent call last):
      jaxllm.errors.UserError: tokens hold the id 12; the vocabulary has ids from 0 to 9
    """
    if not np.issubdtype(ids.dtype, np.integer):
        raise UserError(f"{what} are of type {ids.dtype}; token ids must be whole numbers, such as int32")
    whole = not isinstance(ids, jax.core.Tracer) and getattr(ids, "is_fully_addressable", True)
    if not whole or isinstance(ids, jax.ShapeDtypeStruct) or ids.size == 0:
        return
    ids = np.asarray(ids)
    for extreme in (int(ids.min()), int(ids.max())):
        if extreme >= vocab_size or (extreme < 0 and what != "targets"):
            known = f"the vocabulary has ids from 0 to {vocab_size - 1}"
            raise UserError(f"{what} hold the id {extreme}; {known}")
