"""OrthoAdam in runs: on meshes, from checkpoints, by name; what it costs (contract.py has the rest)."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxllm import models, targets
from jaxllm.optim import (
    OptimConfig,
    decay_mask,
    make_optimizer,
    orthoadam,
    rotation_cost,
    scale_by_ortho_adam,
)
from jaxllm.parallel import MeshConfig
from jaxllm.text import TrainConfig, prepare_shapes
from jaxllm.train.checkpoint import Checkpoints
from tests.optim.rotate_oracle import AXES, STRATEGIES, assert_trees, ortho_adam, run, tree

EVERY_PLATFORM = True  # a test lowers for a TPU


@pytest.mark.parametrize(
    ("kind", "strategy"),
    [
        pytest.param(AxisType.Auto, "kronecker", marks=pytest.mark.slow),
        (AxisType.Explicit, "hadamard"),
    ],
)
def test_sharded_under_jit_is_one_device(kind, strategy):
    """Both axes of a matrix rotate and are split; the state lies as the parameters do."""
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
    sharding = NamedSharding(mesh, PartitionSpec(None, "a", "b"))
    params = {"w": tree(0)["w"]}
    there = jax.device_put(params, sharding)
    optimizer = ortho_adam(strategy=strategy, block_size=STRATEGIES[strategy])
    whole, _ = run(optimizer, params, 2, lambda t, p: p)
    with jax.set_mesh(mesh):
        split, state = run(optimizer, there, 2, lambda t, p: p, optimizer.init(there))
    np.testing.assert_allclose(jax.device_get(split["w"]), jax.device_get(whole["w"]), atol=1e-5)
    for x in (split["w"], state[0].inner.mu["w"], state[0].inner.nu["w"]):
        assert x.sharding.is_equivalent_to(sharding, 3)


@pytest.mark.slow  # a run
def test_a_run_on_a_mesh_saves_restores_and_goes_on_bit_for_bit(tmp_path):
    """By the name `orthoadam`, two ways over embed and four over heads, mlp and words; the paper's norm."""
    model = models.ModelConfig(
        vocab_size=64, embed_dim=32, num_heads=4, num_layers=2, context_length=16, position="rotary",
        norm="rmsnorm_scalar", qkv_bias=False, out_bias=False, mlp_bias=False, sink_logit=0.0,
    )  # fmt: skip
    config = TrainConfig(
        model=model, seq_len=16, batch_size=4, steps=4, isolate_documents=False,
        mesh=MeshConfig(data=1, fsdp=2, tensor=4), optim=OptimConfig(name="orthoadam", warmup_steps=1),
    )  # fmt: skip
    job = prepare_shapes(config)
    tokens = np.random.default_rng(0).integers(0, 64, (4, 17)).astype(np.int32)
    batch = job.put({
        "tokens": tokens[:, :-1], "targets": tokens[:, 1:],
        "segment_ids": np.zeros((4, 16), np.int32), "mask": np.ones((4, 16), np.float32),
    })  # fmt: skip

    def steps(state, count):
        losses = []
        for _ in range(count):
            state, metrics = job.train_step(state, batch)
            losses.append(float(metrics["loss"]))
        return state, losses

    straight, losses = steps(job.init(jax.random.key(0)), 4)
    assert losses[-1] < losses[0]
    half, _ = steps(job.init(jax.random.key(0)), 2)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(half, step=2, data={}, config={})
    checkpoints.wait()
    written = sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file())
    resumed, _ = steps(checkpoints.restore(2, job.shapes)[0], 2)
    assert_trees(jax.tree.map(np.asarray, resumed.params), jax.tree.map(np.asarray, straight.params))
    found = [
        x
        for p, x in jax.tree.leaves_with_path(resumed.opt_state)
        if "['mlp']['in']" in jax.tree_util.keystr(p)
    ]
    assert len(found) == 2 and written > 0
    for moment in found:
        assert moment.addressable_shards[0].data.shape == (2, 16, 32)


def test_found_by_name_with_axes_decay_and_schedule():
    config = OptimConfig(name="orthoadam", learning_rate=0.1, schedule="constant", warmup_steps=0,
                         clip_norm=0.0, weight_decay=0.5)  # fmt: skip
    direct = orthoadam(0.1, AXES, 0.9, 0.95, 1e-8, 0.5, decay_mask(AXES))
    by_name, _ = run(make_optimizer(config, 10, AXES), tree(0), 3)
    assert_trees(by_name, run(direct, tree(0), 3)[0], atol=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_cost_is_what_is_compiled(strategy):
    """FLOPs of the compiled step's products; blocks of 64 and 32 on axes of 128 and 96, two of 3 layers."""
    shapes = {"w": jax.ShapeDtypeStruct((3, 128, 96), "float32"), "g": jax.ShapeDtypeStruct((96,), "float32")}
    axes = {"w": ("layers", "embed", "mlp"), "g": ("mlp",)}
    options = dict(strategy=strategy, block_size=None if strategy == "kronecker" else 64)
    link = scale_by_ortho_adam(axes, **options)
    forecast = targets.compile(link.update, [shapes, jax.eval_shape(link.init, shapes), shapes], "cpu")
    cost = rotation_cost(shapes, axes, **options)
    tail = 96**2 if strategy == "kronecker" else 64**2 + 32**2
    whole = 128**2 if strategy == "kronecker" else 2 * 64**2
    assert cost.product_flops == 4 * (3 * 96 * whole + (3 * 128 + 1) * tail)
    assert sum(forecast.flops.values()) == cost.product_flops
    sizes = (128, 96) if strategy == "kronecker" else (64, 32)
    assert cost.matrix_bytes == sum(4 * k * k for k in sizes)
    assert cost.draw_flops == (0 if strategy == "hadamard" else sum(8 * k**3 // 3 for k in sizes))
    assert cost.state_bytes == 8


def test_gpt2_costs_a_small_share_of_a_step_of_half_a_million_tokens():
    config = models.get_preset("gpt2")
    step = config.flops_per_token(1024) * 2**19
    for strategy in STRATEGIES:
        cost = rotation_cost(models.shapes(config), models.axes(config), strategy=strategy)
        assert (cost.product_flops + cost.draw_flops) / step < 0.01


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_product_is_left_to_the_default_precision(strategy):
    """A TPU's default would round both operands to bfloat16."""
    link = scale_by_ortho_adam(AXES, strategy=strategy, block_size=STRATEGIES[strategy])
    traced = jax.jit(link.update).trace(tree(0), link.init(tree(0)))
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    products = [line for line in text.splitlines() if re.search(r"stablehlo\.dot_general", line)]
    assert products
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)
