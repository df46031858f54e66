"""A compiler that the planner can ask in a test: the estimate, off by factors."""

import dataclasses
from dataclasses import dataclass

from jaxllm import models
from jaxllm.targets.analytic import estimate
from jaxllm.text import TrainConfig

GPT2 = TrainConfig(model=models.get_preset("gpt2"), seq_len=1024, batch_size=64, precision="mixed_o1")


@dataclass(frozen=True)
class FakeForecast:
    """What the planner reads of a forecast."""

    peak_bytes: int
    seconds: float
    fits: bool
    bound: str = "compute"
    mfu: float = 0.5

    def to_dict(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values):
        return cls(**values)


class FakeCompiler:
    """Off from the estimate by factors of its own, like a real one; remembers what it was asked."""

    def __init__(self, memory=1.0, time=1.0):
        self.memory, self.time, self.asked = memory, time, []

    def __call__(self, config, target):
        self.asked.append(config)
        guess = estimate(config, target)
        off = self.time(config) if callable(self.time) else self.time
        peak = int(guess.peak_bytes * self.memory)
        fits = peak <= target.hbm_bytes and guess.host_bytes <= target.host_bytes
        return FakeForecast(peak, guess.seconds * off, fits, guess.bound)
