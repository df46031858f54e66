"""MaxText's own training step of GPT-2's shape, compiled by MaxText's own ahead-of-time command.

MaxText needs Python 3.12 and packages of its own, so it runs in another interpreter, from a checkout:
`python -m maxtext.trainers.pre_train.train_compile` (commit e591f30 was seen working with jax 0.10.2).
"""

import os
import re
import subprocess
from pathlib import Path

from jaxllm.errors import UserError
from jaxllm.models import ModelConfig
from jaxllm.targets.catalog import Target


def maxtext_peak(
    checkout: str, python: str, config: ModelConfig, target: Target, batch_size: int, seq_len: int, *,
    remat: str, attention: str,
) -> int:  # fmt: skip
    """Return the peak bytes a device of MaxText's step, as the compiler accounts for it.

    Parameters and moments are float32, products bfloat16, parameters sharded over all devices.

    Args:
      checkout: folder of MaxText's repository.
      python: interpreter with MaxText's packages.
      config: GPT-2's sizes.
      target: a TPU slice.
      batch_size: over all devices.
      seq_len: tokens.
      remat: its remat_policy.
      attention: its attention.
    """
    values = {
        "compile_topology": target.name, "compile_topology_num_slices": 1,
        "decoder_block": "gpt3", "base_emb_dim": config.embed_dim, "base_mlp_dim": config.mlp_dim,
        "base_num_decoder_layers": config.num_layers, "base_num_query_heads": config.num_heads,
        "base_num_kv_heads": config.num_heads, "head_dim": config.head_dim, "vocab_size": config.vocab_size,
        "trainable_position_size": config.context_length, "mlp_activations": "['gelu']",
        "logits_via_embedding": "true", "normalize_embedding_logits": "false", "fused_qkv": "true",
        "normalization_layer_epsilon": config.norm_eps, "gradient_clipping_threshold": 1.0,
        "per_device_batch_size": batch_size / target.num_devices, "max_target_length": seq_len,
        "remat_policy": remat, "attention": attention, "enable_checkpointing": "false",
        "dataset_type": "synthetic", "run_name": "compile", "base_output_directory": "compile",
    }  # fmt: skip
    command = [python, "-m", "maxtext.trainers.pre_train.train_compile", "maxtext/configs/base.yml"]
    command += [f"{name}={value}" for name, value in values.items()]
    environment = os.environ | {
        "DECOUPLE_GCLOUD": "TRUE", "JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1", "XLA_FLAGS": "",
    }  # fmt: skip
    done = subprocess.run(
        command, cwd=Path(checkout) / "src", env=environment, capture_output=True, text=True, check=False
    )
    figures = dict(re.findall(r"(\w+)_size_in_bytes=(\d+)", done.stdout.rpartition("Memory analysis")[2]))
    if not figures:
        used = re.search(r"Used ([\d.]+)G of", done.stdout + done.stderr)
        if used:
            return int(float(used[1]) * 2**30)
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(f"MaxText in '{checkout}' did not compile its step for {target.name}: {last}")
    size = {name: int(value) for name, value in figures.items()}
    held = size["argument"] + size["output"] - size["alias"]
    return held + size["temp"] + size["generated_code"]
