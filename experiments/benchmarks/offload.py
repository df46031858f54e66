"""The largest GPT that a machine trains when its state lies on the device, in the host's memory, or in part.

    python -m experiments.benchmarks.offload  # hours; extras: cuda-targets, tpu-targets
    python -m experiments.benchmarks.offload --machines a100-80gb --optimizers adamw  # 10 minutes on 2 cores

For each machine, way and precision the largest model is sought, first by the estimate in closed form, then
by compiling: its plan is the fastest that fits (`targets.plan`: mesh, parts of a batch, what layers keep).
"device" keeps everything there, "activations" moves the inputs of layers to the host's memory, "optimizer"
moves moments, "streamed" moves layers, their gradients and their moments, and fetches layer by layer.
"tiles" is the engine of tile tasks, float32 throughout: nothing but tiles in use is on the device, and the
judge is the simulator. "adamw" is float32 with products in bfloat16, 16 bytes a parameter; "adamw_bf16_sr"
rounds stochastically, 8.

On eight A100 80 GB with 900 GB of memory the models are those of NNTile's figures (arXiv 2504.13236: four
wide layers, 1024 tokens, here 64 sequences a step), where PyTorch's FSDP ends at 7.9 (tf32) and 15.4 (bf16)
billion parameters and NNTile at 50.0. Elsewhere models deepen as they widen, a layer for 128 of width, as
GPT-3's do, with 8 sequences a device.

Compiled for these machines, not run on them: a step's time is a forecast, and what crosses to the host is
read off the compiled program.
"""

import dataclasses
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass

from tqdm import tqdm

from experiments.tiled_training.machines import PUBLISHED, published_model
from jaxllm import targets
from jaxllm.cli.experiment import run_experiment
from jaxllm.config import Config, Count, Positive, UserPath
from jaxllm.errors import UserError, unknown
from jaxllm.models import ModelConfig
from jaxllm.optim import OptimConfig
from jaxllm.report import Claim, Report, markdown_table
from jaxllm.targets.candidates import Search, candidates
from jaxllm.targets.planner import Plan, plan, rank
from jaxllm.text import TrainConfig

_NODE, _HOST_BYTES = "a100-80gbx8", 900e9  # the paper's
_PAPER, _ISSUE = "NNTile's figures", "issue: offload"
_JIT = dict(engines=("jit",), compiles=1)
_HOPE = 1.03  # how far over the memory a corrected estimate may be
WAYS = {
    "device": Search(offloads=("none",), remats=("none", "dots", "full"), **_JIT),
    "activations": Search(offloads=("none",), remats=("offload",), **_JIT),
    "optimizer": Search(offloads=("optimizer",), remats=("none", "dots", "full", "offload"), **_JIT),
    "streamed": Search(offloads=("state",), remats=("full", "offload"), **_JIT),
    "tiles": Search(engines=("tiles",)),
}
PRECISIONS = {"adamw": "mixed_o1", "adamw_bf16_sr": "bfloat16"}  # of each optimizer


@dataclass(frozen=True)
class OffloadConfig(Config):
    """Which machines, and where the state lies."""

    machines: tuple[str, ...] = ("h100", "a100-80gb", "v5e-1", "h100x8", _NODE, "v5e-8")
    ways: tuple[str, ...] = tuple(WAYS)
    optimizers: tuple[str, ...] = tuple(PRECISIONS)
    seq_len: Count = 1024
    most: Positive = 200.0  # billions of parameters of the largest model that is tried
    out: UserPath = "runs/offload"

    def __post_init__(self):
        super().__post_init__()
        for name in self.ways:
            if name not in WAYS:
                raise unknown("way", name, WAYS)
        for name in self.optimizers:
            if name not in PRECISIONS:
                raise unknown("optimizer", name, PRECISIONS)


PRESETS = {
    "debug": lambda: OffloadConfig(("h100",), ("device", "streamed"), ("adamw_bf16_sr",), 128, 0.05,
                                   "runs/offload-debug"),
    "small": OffloadConfig,
}  # fmt: skip


def main(config: OffloadConfig, preset: str = "small") -> Report:
    """Seek the largest model of every machine, way and optimizer; write the report into `config.out`."""
    started = time.time()
    for machine in config.machines:
        if not targets.is_available(machine):
            raise UserError(
                f"the compiler for {machine} is not installed; see the README's section on extras"
            )
    cases = [(m, w, o) for m in config.machines for w in config.ways for o in config.optimizers
             if w != "tiles" or o == "adamw"]  # fmt: skip
    bar = tqdm(cases, desc="largest model", unit="case")
    found = {case: largest(config, *case, bar) for case in bar}
    report = Report(
        experiment="benchmarks/offload", preset=preset, config=dataclasses.asdict(config), seeds=[],
        metrics=_metrics(found), claims=_claims(config, found), seconds=time.time() - started,
        sections={"Largest models": _table(found)},
    )  # fmt: skip
    report.write(config.out)
    print(report.to_markdown(config.out))
    return report


def largest(config: OffloadConfig, machine: str, way: str, optimizer: str, bar=None) -> Plan | None:
    """Return the plan of the largest model that fits by the compiler's account; None: none does.

    Sizes around the one that the estimate ends at are compiled, up or down from it until the answer turns; a
    size above one that fits only if estimates leave hope, corrected by what the compiler said of the other.
    In tiles each size that is looked at is simulated.
    """
    target = _target(machine)
    sizes = list(_models(machine, config.most))
    runs = [_run(config, model, target, way, optimizer) for model in sizes]
    search = WAYS[way]

    @functools.cache
    def ranked(index: int):
        return rank(candidates(runs[index], target, search), target)

    def fits_by_estimate(index: int) -> bool:
        return fits(index) is not None if way == "tiles" else any(e.fits for _, e in ranked(index))

    def hopeful(index: int, smaller: Plan) -> bool:
        if way == "tiles":
            return True
        correct = smaller.correction()
        return any(
            correct(c) * e.peak_bytes <= _HOPE * target.hbm_bytes and e.host_bytes <= e.host_limit
            for c, e in ranked(index)
        )

    @functools.cache
    def fits(index: int) -> Plan | None:
        if bar is not None:
            bar.set_postfix_str(f"{machine}, {way}, {optimizer}: {_billions(sizes[index]):.2f} B")
        try:
            return plan(runs[index], target, search)
        except UserError:
            return None

    low, high = -1, len(sizes)  # sizes up to low fit by the estimate, from high on they do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits_by_estimate(middle) else (low, middle)
    best, index = None, max(low, 0)
    while index >= 0 and (best := fits(index)) is None:
        index -= 1
    if index < low:
        return best
    while index + 1 < len(sizes) and hopeful(index + 1, best) and (more := fits(index + 1)) is not None:
        best, index = more, index + 1
    return best


def _target(machine: str) -> targets.Target:
    target = targets.get_target(machine)
    if machine == _NODE:
        target = dataclasses.replace(target, host_bytes=int(_HOST_BYTES / target.num_devices))
    return target


def _models(machine: str, most: float) -> Iterator[ModelConfig]:
    """Yield models from small to large."""
    width = 0
    while True:
        if machine == _NODE:
            width = width + 1024 if width else 2560
            model = published_model(width, 4)
        else:
            width += 256
            model = ModelConfig(num_layers=width // 128, embed_dim=width, num_heads=width // 128)
        if _billions(model) > most:
            return
        yield model


def _run(config, model: ModelConfig, target, way: str, optimizer: str) -> TrainConfig:
    remat = (WAYS[way].remats or ("none",))[0]
    return TrainConfig(
        model=dataclasses.replace(model, remat=remat), seq_len=config.seq_len,
        batch_size=8 * target.num_devices, isolate_documents=False,
        precision="float32" if way == "tiles" else PRECISIONS[optimizer],
        optim=OptimConfig(name=optimizer),
    )  # fmt: skip


def _billions(model: ModelConfig) -> float:
    return model.num_params / 1e9


def _metrics(found) -> dict[str, float]:
    metrics = {}
    for (machine, way, optimizer), best in found.items():
        case = f"{machine}/{way}/{optimizer}"
        metrics[f"billions/{case}"] = _billions(best.config.model) if best else 0.0
        if best is None:
            continue
        forecast = best.best.forecast
        metrics |= {
            f"peak_gib/{case}": forecast.peak_bytes / 2**30,
            f"host_gib/{case}": forecast.host_bytes / 2**30,
            f"host_moved_gib/{case}": forecast.host_bytes_moved / 2**30,
            f"host_seconds/{case}": forecast.host_seconds,
            f"seconds/{case}": forecast.seconds,
        }
    return metrics


def _claims(config, found) -> list[Claim]:
    size = {case: _billions(best.config.model) if best else 0.0 for case, best in found.items()}
    claims = []
    for machine in config.machines:
        for optimizer in config.optimizers:
            here, away = (size.get((machine, way, optimizer), 0.0) for way in ("device", "streamed"))
            if here and away:
                claims.append(Claim(f"{machine}, {optimizer}: streamed over on the device, over 2", _ISSUE,
                                    away / here, away > 2 * here))  # fmt: skip
    ran = [row[0] for row in PUBLISHED["a100x8", 4].values() if row[3]]
    streamed = size.get((_NODE, "streamed", "adamw"))
    if streamed:
        claims.append(Claim(f"{_NODE}: billions of parameters streamed, at least NNTile's", _PAPER, streamed,
                            streamed >= max(ran), paper=max(ran)))  # fmt: skip
    here = size.get((_NODE, "device", "adamw"))
    if here:
        fsdp = max(row[0] for row in PUBLISHED["a100x8", 4].values() if row[2])
        claims.append(Claim(f"{_NODE}: billions of parameters on the devices, at least FSDP tf32's", _PAPER,
                            here, here >= fsdp, paper=fsdp))  # fmt: skip
    return claims


def _table(found) -> str:
    rows = []
    for (machine, way, optimizer), best in found.items():
        if best is None:
            rows.append((machine, way, optimizer, "none") + ("",) * 7)
            continue
        c, f, mesh = best.config, best.best.forecast, best.config.mesh
        rows.append((
            machine, way, optimizer, f"{_billions(c.model):.1f} B",
            f"{c.model.num_layers} x {c.model.embed_dim}", f"{mesh.data} x {mesh.fsdp} x {mesh.tensor}",
            f"{c.model.remat}, {c.accumulate}", f"{f.peak_bytes / 2**30:.1f}", f"{f.host_bytes / 2**30:.1f}",
            f"{f.host_bytes_moved / 2**30:.0f} GiB, {f.host_seconds:.1f} s", f"{f.seconds:.1f} s",
        ))  # fmt: skip
    return markdown_table(
        ("machine", "way", "optimizer", "parameters", "layers x width", "data x fsdp x tensor",
         "remat, parts", "GiB a device", "in its host's", "over the link", "step"), rows,
    )  # fmt: skip


if __name__ == "__main__":
    run_experiment(main, OffloadConfig, PRESETS)
