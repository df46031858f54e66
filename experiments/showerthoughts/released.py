"""The authors' released sets: measures, how far splits overlap, and the linear detector across them."""

from typing import Any

from experiments.showerthoughts.detectors import Labels, accuracy, linear_detector
from experiments.showerthoughts.report import set_measures
from experiments.showerthoughts.texts import overlaps, read_released
from jaxllm.measures import distinct_n

_BUDGET = 50_000  # words, of the figures that the released sets are known by


def released_study(folder: str) -> dict[str, Any]:
    """Return measures of each set, overlaps, and accuracies [trained on][tested on], raw and normalised.

    A test set that overlaps with a training set is named by `overlaps`: its figure is no accuracy.
    """
    released = read_released(folder)
    splits = {name: Labels([t for t, _ in rows], _flags(rows)) for name, rows in released.splits.items()}
    found: dict[str, Any] = {"overlaps": overlaps({name: part.texts for name, part in splits.items()})}
    genuine = [t for t, made in released.splits.get("mixed/train", []) if not made]
    found["sets"] = {}
    for name, texts in {"genuine": genuine, **released.samples}.items():
        if texts:
            one = set_measures(texts, None, genuine or None, min(2000, 10 * len(texts)))
            words = sum(len(text.split()) for text in texts)
            if words > 1.1 * _BUDGET:
                one |= {f"distinct_{n}": distinct_n(texts, n, _BUDGET) for n in (1, 2, 3)}
            found["sets"][name] = one
    found["accuracy"] = {}
    for normalized in (False, True):
        parts = {n: part.normalized() if normalized else part for n, part in splits.items()}
        for train in (name for name in parts if name.endswith("/train")):
            detector = linear_detector(parts[train])
            row = {n: accuracy(detector, part) for n, part in parts.items() if n.endswith("/test")}
            found["accuracy"][f"{train}{', normalized' if normalized else ''}"] = row
    return found


def _flags(rows):
    import numpy as np

    return np.array([made for _, made in rows], bool)
