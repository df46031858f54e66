"""What to say when nothing fits: how much is missing, and the smallest change that would fit."""

import contextlib
import dataclasses
from collections.abc import Iterator

from jaxllm.errors import UserError
from jaxllm.targets.analytic import estimate
from jaxllm.targets.candidates import Search, candidates
from jaxllm.targets.catalog import Target, get_target
from jaxllm.text import PRECISIONS

_LARGEST = 16384  # devices or TensorCores: beyond any slice


def nothing_fits(config, target: Target, search: Search, ranked, correct) -> str:
    """Return one sentence: by how much the smallest plan misses, and what would fit by the estimate.

    Args:
      config: the run.
      target: the machine it does not fit.
      search: what the plans could change.
      ranked: [(config, estimate)] of every candidate.
      correct: config -> what to multiply its estimated peak with.
    """
    needed = min(correct(c) * e.peak_bytes for c, e in ranked) / 2**30
    changes = [*_numerics(config, target, search, correct), *_machine(config, target, search, correct),
               *_less(config, target, search, correct)]  # fmt: skip
    advice = " or ".join(changes) if changes else "a smaller model"
    return (
        f"none of {len(ranked)} plans fits {target.name}: the smallest needs {needed:.2f} GiB a device, "
        f"which has {target.hbm_bytes / 2**30:.2f} GiB; what would fit by the estimate: {advice}"
    )


def _numerics(config, target, search, correct) -> list[str]:
    allowed = search.precisions or (config.precision,)
    for name in PRECISIONS:  # from the widest to the narrowest
        wider = dataclasses.replace(search, precisions=(name,))
        if name not in allowed and _fits(config, target, wider, correct):
            return [f"--precision {name}"]
    return []


def _machine(config, target, search, correct) -> list[str]:
    for larger in _larger(target):
        if _fits(config, larger, search, correct):
            return [f"--target {larger.name}"]
    return []


def _less(config, target, search, correct) -> list[str]:
    """Return the longest text and the largest batch that fit, of halves of halves."""
    found = []
    for field, flag in (("seq_len", "--seq-len"), ("batch_size", "--batch")):
        value = getattr(config, field)
        while value := value // 2:
            smaller = dataclasses.replace(config, **{field: value, "accumulate": 1})
            if _fits(smaller, target, search, correct):
                found.append(f"{flag} {value}")
                break
    return found


def _fits(config, target, search, correct) -> bool:
    try:
        found = candidates(config, target, search)
    except UserError:  # a batch that these devices cannot share
        return False
    estimates = ((c, estimate(c, target)) for c in found)
    return any(
        correct(c) * e.peak_bytes <= e.hbm_bytes and e.host_bytes <= e.host_limit for c, e in estimates
    )


def _larger(target: Target) -> Iterator[Target]:
    """Yield machines of the same chip in twice the number, four times, and so on, where there are such."""
    joint = "x" if target.platform == "cuda" else "-"
    chip, found, size = target.name.rpartition(joint)
    if not (found and size.isdigit()):
        chip, size = target.name, "1"
    number = int(size)
    while target.platform != "cpu" and (number := 2 * number) <= _LARGEST:
        with contextlib.suppress(UserError):
            yield get_target(f"{chip}{joint}{number}")
