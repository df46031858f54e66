"""The optimizer benchmark: rivals that compute the same step, counts that agree, claims from the figures."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.benchmarks import optimizers
from jaxllm.models import ModelConfig


@pytest.mark.torch
def test_torch_and_optax_step_alike():
    """Three steps of AdamW with decay on matrices alone; weights of 0.02, steps of 0.001."""
    pytest.importorskip("torch")
    model = ModelConfig(num_layers=1, embed_dim=32, num_heads=1, vocab_size=64, context_length=16)
    ours, theirs = optimizers.jax_steps(model, "optax_adamw"), optimizers.torch_steps(model)
    for _ in range(3):
        ours_after, theirs_after = jax.tree.leaves(ours()), theirs()
    for a, b in zip(ours_after, theirs_after, strict=True):
        np.testing.assert_allclose(np.asarray(a), b.detach().numpy(), atol=1e-7)


@pytest.mark.slow
def test_counts_and_claims_follow_from_what_is_compiled(tmp_path):
    config = dataclasses.replace(optimizers.PRESETS["debug"](), rounds=0, targets=(), out=str(tmp_path))
    report = optimizers.main(config, "debug")
    m = report.metrics
    for strategy, claim in zip(optimizers.STRATEGIES, report.claims, strict=True):
        assert m[f"gigaflops/here/{strategy}/compiled"] == m[f"gigaflops/here/{strategy}"]
        assert m[f"state_bytes_per_parameter/orthoadam_{strategy}"] == pytest.approx(8, abs=1e-3)
        assert claim.measured == m[f"share_of_training_flops/gpt2-nano/{strategy}"]
        assert claim.holds == (claim.measured <= 0.1)
    assert m["state_bytes_per_parameter/adamw_bf16_sr"] == pytest.approx(4, abs=1e-3)
