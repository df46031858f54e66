"""Training steps on the GPU that is here: time and memory beside rivals, and beside what was forecast.

    python -m experiments.benchmarks.gpu_training                              # 5 minutes on an H100
    python -m experiments.benchmarks.gpu_training --cases gpt2:16:none:mixed_o1:adamw

A case is PRESET:SEQUENCES:REMATERIALISATION:PRECISION:OPTIMIZER, of 1024 tokens a sequence. Every step runs
in a process of its own. Time is the median of turns of some steps each, waited for once a turn; memory is the
most that the allocator held. A forecast of the same step is read from `--forecasts`, a file that
`--write-forecasts` makes on any machine (extra: cuda-targets), GPU or not. Rivals, with float32 weights
and bfloat16 products: a common flax step (reference_step.py), transformers' GPT-2 compiled by torch.
"""

import dataclasses
import functools
import json
import multiprocessing
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from experiments.benchmarks.turns import dispatched
from jaxllm.atomic import write_file
from jaxllm.cli.experiment import run_experiment
from jaxllm.config import Config, Count, UserPath
from jaxllm.errors import UserError
from jaxllm.models import get_preset
from jaxllm.report import Claim, Report, markdown_table
from jaxllm.source_digest import source_digest
from jaxllm.text import TrainConfig

_RIVALS_POLICY = "mixed_o1:adamw"
_NEAR = 0.25  # of the measured time, that a forecast is to hit


@dataclass(frozen=True)
class GpuTrainingConfig(Config):
    """Which steps run, and how often."""

    cases: tuple[str, ...] = (
        "gpt2:16:none:mixed_o1:adamw",
        "gpt2:16:full:mixed_o1:adamw",
        "gpt2:16:none:bfloat16:adamw_bf16_sr",
        "gpt2:16:none:mixed_o1:orthoadam",
        "gpt2-medium:8:none:mixed_o1:adamw",
        "gpt2-xl:8:full:mixed_o1:adamw",
        "gpt2-xl:8:full:bfloat16:adamw_bf16_sr",
    )
    rivals: tuple[str, ...] = ("plain", "torch-compile")
    seq_len: Count = 1024
    rounds: Count = 5
    steps: Count = 5  # of a round
    target: str = "h100"
    forecasts: UserPath = ""  # a file of forecasts
    write_forecasts: bool = False  # compile them for `target`, write that file and stop
    out: UserPath = "runs/gpu-training"


def main(config: GpuTrainingConfig, preset: str = "small") -> Report:
    """Run every case; write the report into `config.out`."""
    started = time.time()
    runs = {case: run_of(config, case) for case in config.cases}
    if config.write_forecasts:
        return _write_forecasts(config, runs, preset)
    platform, device = _gpu()
    if platform != "gpu":
        raise UserError(f"this benchmark times a GPU, and jax runs on {platform} here; "
                        "--write-forecasts needs none")  # fmt: skip
    forecasts = read_forecasts(config) if config.forecasts else {}
    metrics, claims, rows = {}, [], []
    peak_flops = _peak_flops(config.target)
    for case, run in tqdm(runs.items(), desc="steps", unit="case"):
        contenders = {"jaxllm": functools.partial(our_step, run)}
        if case.endswith(_RIVALS_POLICY):
            contenders |= {name: functools.partial(RIVALS[name], run) for name in config.rivals}
        flops = run.model.flops_per_token(run.seq_len) * run.batch_size * run.seq_len
        measured = {}
        for name, make in contenders.items():
            found = _in_a_process(make, config.rounds, config.steps)
            if "error" in found:
                print(f"{case}: {name} did not run: {found['error'][:300]}")
                continue
            measured[name] = found
            mfu = flops / found["seconds"] / peak_flops
            metrics |= {f"{key}/{case}/{name}": value for key, value in found.items()} | {
                f"mfu/{case}/{name}": mfu
            }
            forecast = forecasts.get(case, {}).get(name, {})
            rows.append((case, name, f"{1e3 * found['seconds']:.1f}", f"{100 * mfu:.0f} %",
                         f"{found['peak_bytes'] / 2**30:.2f}",
                         *(_forecast_cells(forecast)), f"{found['first_step_seconds']:.0f}"))  # fmt: skip
            if forecast:
                for key, claim in (("seconds", _NEAR), ("peak_bytes", 0.1)):
                    ratio = metrics[f"forecast_ratio/{key}/{case}/{name}"] = forecast[key] / found[key]
                    claims.append(Claim(f"{case}, {name}: forecast {key} within {claim:.0%} of the measured",
                                        "issue: compile lab", ratio, abs(ratio - 1) <= claim))  # fmt: skip
        for name in measured.keys() - {"jaxllm"} if "jaxllm" in measured else ():
            for key in ("seconds", "peak_bytes"):
                ratio = measured["jaxllm"][key] / measured[name][key]
                metrics[f"ratio/{key}/{case}/{name}"] = 1 / ratio
                claims.append(Claim(f"{case}: {key} at most {name}'s", "issue: kernels", ratio, ratio <= 1))
    table = markdown_table(("case", "by", "ms", "MFU", "GiB", "forecast ms", "forecast GiB", "first step, s"),
                           rows)  # fmt: skip
    report = Report(
        experiment="benchmarks/gpu_training", preset=preset, config=vars(config) | {"device": device},
        seeds=[0], metrics=metrics, claims=claims, seconds=time.time() - started, sections={"Steps": table},
    )  # fmt: skip
    report.write(config.out)
    print(table)
    print(report.to_text())
    return report


def run_of(config: GpuTrainingConfig, case: str) -> TrainConfig:
    """Return the run that a case names."""
    parts = case.split(":")
    if len(parts) != 5 or not parts[1].isdigit():
        raise UserError(f"case '{case}' is not PRESET:SEQUENCES:REMATERIALISATION:PRECISION:OPTIMIZER, "
                        "as in gpt2:16:none:mixed_o1:adamw")  # fmt: skip
    preset, sequences, remat, precision, optimizer = parts
    base = TrainConfig()
    return dataclasses.replace(
        base, model=get_preset(preset, remat=remat), batch_size=int(sequences), seq_len=config.seq_len,
        precision=precision, optim=dataclasses.replace(base.optim, name=optimizer), isolate_documents=False,
    )  # fmt: skip


def _gpu() -> tuple[str, str]:
    """Return (jax's platform, its device), asked in another process: this one shall hold no memory there."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_device)


def _device() -> tuple[str, str]:
    import jax

    return jax.default_backend(), jax.devices()[0].device_kind


def _forecast_cells(forecast) -> tuple[str, str]:
    if not forecast:
        return "", ""
    return f"{1e3 * forecast['seconds']:.1f}", f"{forecast['peak_bytes'] / 2**30:.2f}"


def _peak_flops(target: str) -> float:
    from jaxllm import targets

    return targets.get_target(target).peak_flops["bf16"]


def _forecast_key(config: GpuTrainingConfig) -> dict:
    """Return what decides a forecast besides its case."""
    return {"target": config.target, "seq_len": config.seq_len, "code": source_digest()}


def read_forecasts(config: GpuTrainingConfig) -> dict[str, dict]:
    """Return {case: {who: forecast}} of the file.

    Raises:
      UserError: it was written for another target or length, or by other code.
    """
    kept, key = json.loads(Path(config.forecasts).read_text()), _forecast_key(config)
    different = [name for name in key if kept.get("key", {}).get(name) != key[name]]
    if different:
        raise UserError(f"the forecasts in {config.forecasts} are of another {' and '.join(different)}; "
                        "write them anew with --write-forecasts")  # fmt: skip
    return kept["forecasts"]


def _write_forecasts(config, runs, preset) -> Report:
    """Compile every case, and the plain step where it is compared, for a machine that need not be here."""
    from experiments.benchmarks.reference_step import reference_step
    from jaxllm import targets

    if not config.forecasts:
        raise UserError("--write-forecasts needs --forecasts FILE, the file to write")
    started, found = time.time(), {}
    for case, run in tqdm(runs.items(), desc=f"compiling for {config.target}", unit="case"):
        found[case] = {"jaxllm": targets.compile_train_step(run, config.target)}
        if case.endswith(_RIVALS_POLICY):
            step, given = reference_step(run.model, run.batch_size, run.seq_len)
            flops = run.model.flops_per_token(run.seq_len) * run.batch_size * run.seq_len
            found[case]["plain"] = targets.compile(step, given, config.target, model_flops=flops)
    values = {
        case: {who: {"seconds": f.seconds, "peak_bytes": f.peak_bytes} for who, f in by.items()}
        for case, by in found.items()
    }
    values = {"key": _forecast_key(config), "forecasts": values}
    write_file(config.forecasts, (json.dumps(values, indent=1) + "\n").encode())
    print(f"wrote {config.forecasts}")
    return Report(
        experiment="benchmarks/gpu_training", preset=preset, config=vars(config), seeds=[], metrics={},
        claims=[], seconds=time.time() - started,
    )  # fmt: skip


def _in_a_process(make, rounds: int, steps: int) -> dict:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_measure, args=(make, rounds, steps, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        return {"error": "its process ended without a word"}
    finally:
        process.join()


def _measure(make, rounds: int, steps: int, pipe) -> None:
    try:
        begun = time.perf_counter()
        run, wait, peak_bytes = make()
        wait(run())
        first = time.perf_counter() - begun
        wait(run())
        seconds = dispatched(run, wait, rounds, steps)
        pipe.send({"seconds": statistics.median(seconds), "peak_bytes": peak_bytes(),
                   "first_step_seconds": first})  # fmt: skip
    except Exception as error:
        pipe.send({"error": f"{type(error).__name__}: {error}"})


def our_step(run: TrainConfig):
    """Return (the step of `jaxllm train`, what waits for its result, what tells the peak bytes)."""
    import jax

    from jaxllm.text import prepare_shapes

    job = prepare_shapes(run)
    state = [job.init(jax.random.key(0))]
    shape = run.batch_size, run.seq_len
    tokens = np.random.default_rng(0).integers(0, run.model.vocab_size, (shape[0], shape[1] + 1), np.int32)
    batch = job.put({
        "tokens": tokens[:, :-1], "targets": tokens[:, 1:],
        "segment_ids": np.zeros(shape, np.int32), "mask": np.ones(shape, np.float32),
    })  # fmt: skip

    def step():
        state[0], metrics = job.train_step(state[0], batch)
        return metrics["loss"]

    return step, jax.block_until_ready, _jax_peak


def plain_step(run: TrainConfig):
    """Return the same of reference_step.py."""
    import jax

    from experiments.benchmarks.reference_step import reference_step

    step, (state_shapes, batch_shapes) = reference_step(run.model, run.batch_size, run.seq_len)
    draw = lambda s: abs(0.02 * jax.random.normal(jax.random.key(0), s.shape)).astype(s.dtype)  # moments too
    state = [jax.tree.map(draw, state_shapes)]
    batch = jax.tree.map(
        lambda s: jax.random.randint(jax.random.key(1), s.shape, 0, run.model.vocab_size), batch_shapes
    )

    def call():
        state[0], loss = step(state[0], batch)
        return loss

    return call, jax.block_until_ready, _jax_peak


def torch_step(run: TrainConfig):
    """Return the same of transformers' GPT-2: SDPA, bfloat16 products, fused AdamW, torch.compile."""
    import torch
    import transformers

    torch.set_float32_matmul_precision("high")
    transformers.utils.logging.set_verbosity_error()
    m = run.model
    sizes = transformers.GPT2Config(
        n_layer=m.num_layers, n_embd=m.embed_dim, n_head=m.num_heads, n_positions=m.context_length,
        vocab_size=m.vocab_size, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, use_cache=False,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(sizes, attn_implementation="sdpa").cuda()
    if m.remat != "none":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    tokens = torch.randint(0, m.vocab_size, (run.batch_size, run.seq_len), device="cuda")
    compiled = torch.compile(model)

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            loss = compiled(tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step, lambda _: torch.cuda.synchronize(), torch.cuda.max_memory_allocated


def _jax_peak() -> int:
    import jax

    return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]


RIVALS = {"plain": plain_step, "torch-compile": torch_step}


if __name__ == "__main__":
    run_experiment(main, GpuTrainingConfig)
