"""A beam over supports: which few terms of a library explain areas best, of one term, two and so on."""

from collections.abc import Iterator

import numpy as np

_TINY = 1e-24  # of a column's square: what is left of one that the others span is rounding


def beam_of_supports(
    y_NP: np.ndarray, r_PP: np.ndarray, width: int, most: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield, for 1 to `most` terms, (supports int [N, W, S], squares left over [N, W]), best first.

    Each of the `width` best supports of a size is extended by every term. Dropping terms one by one fails
    where columns are nearly dependent and areas noisy, for the first steps drop what is true; the few true
    terms, by contrast, are often the best of their number long before all terms are seen together.

    Args:
      y_NP: areas in the library's orthonormal basis.
      r_PP: columns of the library in that basis.
      width: supports that are kept of each size.
      most: the largest size.

    Examples:
      >>> r = np.eye(3)
      >>> sizes = list(beam_of_supports(np.array([[0.0, 3.0, 1.0]]), r, width=2, most=2))
      >>> sizes[1][0][0, 0].tolist(), float(sizes[1][1][0, 0])
      ([1, 2], 0.0)
    """
    N, P = y_NP.shape
    unit_PP = r_PP / np.linalg.norm(r_PP, axis=0)
    chosen = np.zeros((N, 1, 0), np.int64)
    words, places = np.divmod(np.arange(P), 63)  # a support is a mask of V words
    bits_VP = np.where(words == np.arange(words[-1] + 1)[:, None], np.int64(1) << places, 0)
    for size in range(1, most + 1):
        W = chosen.shape[1]
        if size == 1:
            q = np.zeros((N, 1, P, 0))
        else:
            q = np.linalg.qr(np.swapaxes(unit_PP.T[chosen], -1, -2))[0]
        left = y_NP[:, None] - _project(q, y_NP[:, None, :, None])[..., 0]
        spare = unit_PP - q @ (np.swapaxes(q, -1, -2) @ unit_PP)  # [N, W, P, columns]
        squares = (spare**2).sum(axis=2)
        w = (left[..., None] * spare).sum(axis=2) / np.maximum(squares, _TINY)
        # Not by the difference of two sums of squares: their rounding hides noise below 1e-8 of an area.
        lost = ((left[..., None] - spare * w[:, :, None]) ** 2).sum(axis=2)
        lost = np.where(squares > _TINY, lost, np.inf)
        before = bits_VP[:, chosen].sum(axis=-1)[..., None]
        masks = before | bits_VP[:, None, None]
        lost = np.where((masks == before).all(axis=0), np.inf, lost).reshape(N, W * P)
        masks, lost = _distinct(masks.reshape(-1, N, W * P), lost)
        best = np.argsort(lost, axis=1)[:, :width]
        masks, lost = np.take_along_axis(masks, best[None], axis=2), np.take_along_axis(lost, best, axis=1)
        usable = np.isfinite(lost).all(axis=0)  # the same number of supports for every curve
        masks, lost = masks[..., usable], lost[:, usable]
        if not lost.shape[1]:
            return
        held = ((masks[..., None] & bits_VP[:, None, None]) > 0).any(axis=0)
        chosen = np.nonzero(held)[-1].reshape(*lost.shape, size)
        yield chosen, lost


def _project(q: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return q @ (np.swapaxes(q, -1, -2) @ columns)


def _distinct(masks: np.ndarray, lost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give all but one of equal supports of a curve an infinite loss."""
    order = np.lexsort((lost, *masks), axis=1)
    masks, lost = np.take_along_axis(masks, order[None], axis=2), np.take_along_axis(lost, order, axis=1)
    again = np.zeros(lost.shape, bool)
    again[:, 1:] = (masks[..., 1:] == masks[..., :-1]).all(axis=0)
    return masks, np.where(again, np.inf, lost)
