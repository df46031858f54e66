"""The benchmark of labels on real texts, in its shortest form."""

import dataclasses
import math

import pytest

from experiments.benchmarks import labels
from experiments.shared.real_data import data_folder
from jaxllm.errors import UserError
from jaxllm.pretrained import fetch_minilm
from tests.absent import skip_if_absent

pytestmark = pytest.mark.slow


def test_the_rivals_are_scored_on_the_same_texts(tmp_path):
    try:
        data_folder("text_classification", "nltk")
        fetch_minilm()
    except UserError as error:
        skip_if_absent(error)
    report = labels.main(dataclasses.replace(labels.PRESETS["debug"](), out=str(tmp_path)), "debug")
    assert {
        "accuracy/commonest",
        "accuracy/logistic",
        "accuracy/all_weights",
        "accuracy/lora",
    } <= report.metrics.keys()
    assert all(math.isfinite(value) for value in report.metrics.values())
    train, held_out = labels.read_texts(labels.PRESETS["debug"]())
    assert len(train) == 48 and len(held_out) == 32 and not set(train.texts) & set(held_out.texts)
