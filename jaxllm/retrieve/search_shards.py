"""Ask several searches, each of a part of the rows, and say which did not answer."""

import concurrent.futures
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from jaxllm.errors import UserError
from jaxllm.retrieve.search import Neighbours, merge


@dataclass(frozen=True)
class FoundInShards:
    """What shards found together. With missing ones the answer is exact for the rest alone."""

    neighbours: Neighbours
    missing: dict[str, str]  # shard that did not answer: why
    seconds: dict[str, float]  # of those that did


def search_shards(
    shards: Mapping[str, Callable[[np.ndarray, int], Neighbours]],
    queries_BD: np.ndarray,
    k: int,
    *,
    most_seconds: float = 20.0,
    may_miss: int = 0,
) -> FoundInShards:
    """Return the k nearest rows over all shards, merged exactly: ties go to the lower id.

    Args:
      shards: name -> function (queries, k) of a process, a host or a part of a store; its ids must be
        those of the whole, and it may return fewer than k.
      queries_BD: float32 [B, D].
      k: how many.
      most_seconds: to wait for all of them together.
      may_miss: how many may fail or be late; more is an error.

    Raises:
      UserError: no shards, or more than `may_miss` of them did not answer; it names them.

    Examples:
      >>> part = lambda queries, k: Neighbours(np.ones((1, 1)), np.array([[7]]), np.array([True]))
      >>> def broken(queries, k): raise OSError("connection refused")
      >>> search_shards({"a": part, "b": broken}, np.zeros((1, 2)), 1, may_miss=1).missing
      {'b': 'OSError: connection refused'}
    """
    if not shards:
        raise UserError("no shards to search; give one at least")
    asked = {name: concurrent.futures.Future() for name in shards}
    begun = time.perf_counter()

    def ask(call, answer):
        try:
            answer.set_result((call(queries_BD, k), time.perf_counter() - begun))
        except BaseException as error:
            answer.set_exception(error)

    for name, answer in asked.items():  # daemons: the process ends without those that hang
        threading.Thread(target=ask, args=(shards[name], answer), daemon=True).start()
    concurrent.futures.wait(asked.values(), timeout=most_seconds)
    parts, missing, seconds = [], {}, {}
    for name, future in asked.items():
        if not future.done():
            missing[name] = f"no answer within {most_seconds:g} s"
        elif error := future.exception():
            missing[name] = f"{type(error).__name__}: {error}"
        else:
            part, seconds[name] = future.result()
            parts.append(part)
    if len(missing) > may_miss or not parts:
        told = "; ".join(f"'{name}' ({why})" for name, why in missing.items())
        raise UserError(
            f"{len(missing)} of {len(shards)} shards did not answer: {told}; mend them, or let "
            "may_miss of them be missing"
        )
    return FoundInShards(merge(parts, k), missing, seconds)
