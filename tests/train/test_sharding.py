"""The same numbers however the arrays are split."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxllm import models
from jaxllm.parallel import MeshConfig
from jaxllm.train import prepare, train
from jaxllm.train.writers import read_metrics

MESHES = {
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(data=1, fsdp=8),
    "fsdp x tensor": MeshConfig(data=1, fsdp=2, tensor=4),
}


def losses(config, **options):
    train(config, **options)
    return np.array([row["loss"] for row in read_metrics(config.out) if "loss" in row])


@pytest.fixture
def wide(tiny):
    """A config whose heads, mlp and vocabulary a 4-way tensor axis divides."""
    config = tiny(steps=6)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=260))


def test_losses_are_the_same_on_every_mesh(wide, tmp_path):
    alone = losses(wide, devices=jax.devices()[:1])
    for name, mesh in MESHES.items():
        split = losses(dataclasses.replace(wide, mesh=mesh, out=str(tmp_path / name)))
        np.testing.assert_allclose(split, alone, atol=1e-5, err_msg=name)


def test_optimizer_state_is_split_like_its_parameters(wide):
    """Two ways over embed, four over mlp; master weights and both moments follow."""
    job = prepare(dataclasses.replace(wide, mesh=MESHES["fsdp x tensor"], precision="mixed_o2"))
    state = job.init(jax.random.key(0))
    layers, width, mlp = 2, 32, 128
    leaves = jax.tree.leaves_with_path((state.params, state.opt_state))
    found = [x for path, x in leaves if "mlp" in str(path) and x.shape == (layers, width, mlp)]
    assert len(found) == 4  # parameter, master copy, first and second moment
    for x in found:
        assert x.addressable_shards[0].data.shape == (layers, width // 2, mlp // 4)


WORKER = """
import dataclasses, sys
from jaxllm import parallel
parallel.initialize()
import jax
from jaxllm import models
from jaxllm.optim import OptimConfig
from jaxllm.parallel import MeshConfig
from jaxllm.train import TrainConfig, train
data, out, steps = sys.argv[1:]
config = TrainConfig(
    model=models.get_preset("gpt2-nano", vocab_size=None, embed_dim=32, num_heads=4, context_length=32),
    data=data, tokenizer="bytes", seq_len=16, batch_size=8, steps=int(steps), eval_every=100, save_every=2,
    eval_batches=2, final_eval_batches=2, log_every=1, mesh=MeshConfig(data=2, fsdp=2),
    optim=OptimConfig(learning_rate=1e-2, warmup_steps=2, schedule="constant"), progress=False, out=out,
)
assert jax.process_count() == 2 and jax.device_count() == 4
trained = train(config)
print("RESULT", trained.evaluation.loss)
"""


def run_two_processes(folder, out, steps):
    """Run WORKER in two processes of two devices each; return their held-out losses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    env = os.environ | {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder), str(out), str(steps)],
            env=env | {"JAX_PROCESS_ID": str(index)}, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    outputs = [worker.communicate(timeout=240) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], [err[-2000:] for _, err in outputs]
    return [float(out.split("RESULT ")[1]) for out, _ in outputs]


def test_two_processes_train_and_resume_like_one(tiny, tmp_path, text_folder):
    """Real processes joined by jax.distributed on localhost, against one process."""
    config = tiny(save_every=2, optim=dataclasses.replace(tiny().optim, schedule="constant"))
    one = losses(config, devices=jax.devices()[:4])
    out = tmp_path / "two"
    run_two_processes(text_folder, out, 2)  # stops after two steps
    heldout = run_two_processes(text_folder, out, 4)  # resumes
    two = np.array([row["loss"] for row in read_metrics(out) if "loss" in row])
    np.testing.assert_allclose(two, one, atol=1e-5)
    assert heldout[0] == heldout[1]
    assert len(list(Path(out, "checkpoints").glob("4"))) == 1


def test_parameters_are_never_whole_on_one_device(wide):
    """Under 8-way fsdp each device holds an eighth of what can be split from the start."""
    job = prepare(dataclasses.replace(wide, mesh=MESHES["fsdp"]))
    init = job.init.lower(jax.random.key(0)).compile()
    held = init.memory_analysis().output_size_in_bytes
    whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(job.shapes))
    assert held < 0.2 * whole, (held, whole, json.dumps(models.axes(job.model), default=str)[:200])
