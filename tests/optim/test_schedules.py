"""Schedules against their closed forms."""

import math

import numpy as np
import pytest

from jaxllm.optim import make_schedule

PEAK, STEPS, WARMUP, FINAL, DECAY = 2e-3, 200, 20, 0.1, 0.25


def expected(name, t):
    if t < WARMUP:
        return PEAK * (1 + (WARMUP - 1) * min(t / (WARMUP - 1), 1)) / WARMUP
    done = (t - WARMUP) / (STEPS - WARMUP)
    if name == "cosine":
        return PEAK * (FINAL + (1 - FINAL) * (1 + math.cos(math.pi * done)) / 2)
    if name == "linear":
        return PEAK * (1 - (1 - FINAL) * done)
    if name == "wsd":
        return PEAK * (1 - (1 - FINAL) * max(0, (t - STEPS * (1 - DECAY)) / (STEPS * DECAY)))
    return PEAK


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "constant"])
def test_schedule_is_its_closed_form(name):
    schedule = make_schedule(
        name, peak=PEAK, steps=STEPS, warmup_steps=WARMUP, final_fraction=FINAL, decay_fraction=DECAY
    )
    for t in [0, 1, 10, 19, 20, 21, 100, 149, 150, 151, 180, 199, 200]:
        np.testing.assert_allclose(float(schedule(t)), expected(name, t), rtol=2e-5, err_msg=str(t))
