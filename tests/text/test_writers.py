"""What a run writes besides checkpoints: JSONL, TensorBoard, traces."""

import gzip
import json
from pathlib import Path

import jax
import pytest

from jaxllm.text import train
from jaxllm.train.writers import read_metrics

pytestmark = pytest.mark.usefixtures("steps_shared")


def read_events(folder):
    """Return {(name, step): value} of the TensorBoard event file in a folder (TFRecord of protobuf)."""
    from tensorboardX.proto import event_pb2

    [path] = Path(folder).glob("events*")
    data, values = path.read_bytes(), {}
    while data:
        size = int.from_bytes(data[:8], "little")  # then a checksum, the record, a checksum
        event = event_pb2.Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]
        values |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
    return values


@pytest.fixture
def run(tiny):
    """A function that trains with some values replaced, on one device; return (config, result)."""

    def go(**values):
        config = tiny(eval_every=2, steps=7, **values)
        return config, train(config, devices=jax.devices()[:1])

    return go


@pytest.mark.slow
def test_tensorboard_holds_what_the_jsonl_holds(run):
    pytest.importorskip("tensorboardX")
    config, _ = run(tensorboard=True)
    events = read_events(Path(config.out) / "tensorboard")
    rows = read_metrics(config.out)
    written = {(name, row["step"]): value for row in rows for name, value in row.items() if name != "step"}
    assert {"loss", "grad_norm", "learning_rate", "heldout_bits_per_byte"} <= {n for n, _ in written}
    assert events == pytest.approx(written, rel=1e-6)


@pytest.mark.slow
def test_profile_traces_as_many_steps_as_asked(run):
    config, _ = run(profile=3)
    [trace] = (Path(config.out) / "profile").rglob("*.trace.json.gz")
    with gzip.open(trace) as file:
        events = json.load(file)["traceEvents"]
    assert len([e for e in events if e.get("name") == "train"]) == 3  # XProf's step markers


def test_evaluations_and_their_steps_are_logged(run):
    config, trained = run()
    rows = [row for row in read_metrics(config.out) if "heldout_loss" in row]
    assert [row["step"] for row in rows] == [2, 4, 6, 7]
    scores = trained.evaluation
    assert rows[-1]["heldout_loss"] == pytest.approx(scores["loss"])  # both read the same two batches
    assert scores["tokens"] > 0
