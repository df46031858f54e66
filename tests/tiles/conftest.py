"""Programs of tile tasks that tests run."""

import itertools

import jax
import numpy as np
import pytest

from jaxllm.tiles.cost_model import DataSheet
from jaxllm.tiles.execute import Executor
from jaxllm.tiles.machines import Link, local_machine
from jaxllm.tiles.simulate import simulate


@pytest.fixture
def batch():
    """A function that makes a batch with padding, documents and targets that do not count."""

    def make(shape, vocab_size, seed=0):
        draw = np.random.default_rng(seed)
        return {
            "tokens": draw.integers(0, vocab_size, shape, dtype=np.int32),
            "targets": draw.integers(0, vocab_size, shape, dtype=np.int32),
            "mask": (draw.random(shape) < 0.8).astype(np.float32),
            "segment_ids": np.sort(draw.integers(0, 2, shape, dtype=np.int32), axis=1),
        }

    return make


@pytest.fixture
def nominal():
    """A cost model in which arithmetic and memory are equally fast on every device of the tests."""
    kind = jax.devices()[0].device_kind
    return DataSheet({kind: 1e9}, {kind: 1e9}, launch=1e-6)


@pytest.fixture
def schedule(nominal):
    """A function that schedules a graph on some of the simulated devices."""

    def make(graph, devices=1, policy="dmdas", device_bytes=1 << 40, **options):
        links = dict.fromkeys(itertools.permutations(range(devices + 1), 2), Link("copies", 1e9, 1e-6))
        sizes = dict(device_bytes=device_bytes, host_bytes=1 << 40)
        machine = local_machine(jax.devices()[:devices], **sizes, links=links)
        return simulate(graph, machine, nominal, policy, **options)

    return make


@pytest.fixture
def run(schedule):
    """A function that schedules a graph, runs it, and returns the tiles that are left."""

    def execute(graph, values, devices=1, **options):
        executor = Executor(schedule(graph, devices, **options), jax.devices()[:devices])
        # Tasks consume what they change; another run of the same values needs its own.
        left = executor.run(jax.device_put(values, may_alias=False))
        executor.wait()
        return left

    return execute
