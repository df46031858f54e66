"""Token ids, checked where a model takes them."""

import jax
import numpy as np

from jaxllm.errors import UserError


def check_tokens(tokens_BT, vocab_size: int) -> None:
    """Check a batch of token ids as `check_ids` does, and that it is [B, T].

    Raises:
      UserError: another number of axes, or what `check_ids` refuses.
    """
    if tokens_BT.ndim != 2:
        raise UserError(f"tokens are of shape {list(tokens_BT.shape)}; give [B, T], a row of ids each")
    check_ids(tokens_BT, vocab_size)


def check_ids(ids, vocab_size: int, what: str = "tokens") -> None:
    """Check that token ids are whole numbers of a vocabulary; of a traced array only the type is known.

    Args:
      ids: an array.
      vocab_size: one more than the largest id.
      what: what the ids are, for messages. "targets" may be negative, which leaves them out of a loss;
        "positions" are of a table of positions.

    Raises:
      UserError: fractions, or an id that the vocabulary does not have.

    Examples:
      >>> check_ids(np.array([3, 12]), 10)
      Traceback (most recent call last):
      jaxllm.errors.UserError: tokens hold the id 12; the vocabulary has ids from 0 to 9
    """
    if not np.issubdtype(ids.dtype, np.integer):
        kind = what if what == "positions" else "token ids"
        raise UserError(f"{what} are of type {ids.dtype}; {kind} must be whole numbers, such as int32")
    whole = not isinstance(ids, jax.core.Tracer) and getattr(ids, "is_fully_addressable", True)
    if not whole or isinstance(ids, jax.ShapeDtypeStruct) or ids.size == 0:
        return
    ids = np.asarray(ids)
    for extreme in (int(ids.min()), int(ids.max())):
        if extreme >= vocab_size or (extreme < 0 and what != "targets"):
            one, known = "the id ", "the vocabulary has ids"
            if what == "positions":
                one, known = "", "the model has positions"
            raise UserError(f"{what} hold {one}{extreme}; {known} from 0 to {vocab_size - 1}")
