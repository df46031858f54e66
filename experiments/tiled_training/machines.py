"""NNTile's published speeds, and the same models simulated as tile tasks on the machines they were run on.

Nobody ran these machines here: seconds of tasks are from data sheets (`cost_model.A100_TF32`). What is not
published is assumed, and stands in `SETTING`: 64 sequences a step, a number with which FSDP's bytes end near
where its published runs do, in parts of 16; tiles of 2 sequences and of up to 8192 columns; policy dmdasd.
Nothing was fitted to the published speeds.

Mikhalev et al., NNTile (arXiv 2504.13236); its figures were read off the vector drawings (1 % or so).
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from jaxllm.atomic import write_figure
from jaxllm.errors import UserError
from jaxllm.models import ModelConfig
from jaxllm.plots import label_axes, share_legend
from jaxllm.report import Claim, markdown_table
from jaxllm.tiles.config import TileSizes
from jaxllm.tiles.cost_model import A100_TF32, DataSheet
from jaxllm.tiles.gpt2 import StepOptions, gpt2_step
from jaxllm.tiles.machines import Machine, get_machine, gpu_machine
from jaxllm.tiles.simulate import simulate

PART = 16
_VOCAB, _SEQ, _HEAD_DIM = 50257, 1024, 128
_GPU_BYTES = 80e9
_PAPER = "NNTile's figures"
_SHEET = DataSheet({"gpu": 1e12}, {"gpu": 1e11}, launch=5e-6)  # of a made-up GPU

Found = tuple[dict[str, float], list[Claim], dict[str, str]]  # metrics, claims, sections of the report


@dataclass(frozen=True)
class Setting:
    """What the paper does not say of its runs."""

    sequences: int = 64  # a step
    part: int = PART  # sequences computed before the next ones
    batch_tile: int = 2  # sequences
    width_tile: int = 8192  # columns of a tile of a weight, at most
    policy: str = "dmdasd"


SETTING = Setting()

# (machine, layers): {width: (billions of parameters, TFLOP/s of FSDP bf16, FSDP tf32, NNTile tf32)}; 0 did
# not run, None is not drawn. Widths are 4608 + 1024 i with 4 layers and 4864 + 1024 i with 8.
PUBLISHED = {
    ("a100x8", 4): {
        4608: (1.5, 1492, 716, 559), 5632: (2.1, 1505, 715, 578), 6656: (2.8, 1506, 708, 629),
        7680: (3.6, 1512, 703, 653), 8704: (4.5, 1515, 696, 651), 9728: (5.6, 1515, 520, 610),
        10752: (6.7, 1518, 346, 650), 11776: (7.9, 1522, 244, 665), 12800: (9.2, 1492, 0, 698),
        13824: (10.6, 1421, None, 719), 14848: (12.1, 1031, None, 701), 15872: (13.7, 724, None, 613),
        16896: (15.4, 703, None, 605), 17920: (17.3, 0, None, 642), 18944: (19.2, None, None, 646),
        19968: (21.2, None, None, 620), 22016: (25.5, None, None, 561), 24064: (30.2, None, None, 502),
        26112: (35.4, None, None, 514), 28160: (40.9, None, None, 470), 30208: (46.9, None, None, 397),
        31232: (50.0, None, None, 349), 32256: (53.2, None, None, 0),
    },
    ("a100x4", 4): {
        4608: (1.5, 752, 359, 327), 6656: (2.8, 764, 358, 349), 8704: (4.5, 773, 345, 340),
        10752: (6.7, 773, 147, 357), 11776: (7.9, 767, 0, 359), 16896: (15.4, 264, None, 344),
        18944: (19.2, None, None, 288), 22016: (25.5, None, None, 267), 23040: (27.8, None, None, 0),
    },
    ("a100x8", 8): {
        4864: (2.8, 1470, 700, 529), 6912: (5.3, 1494, 701, 553), 9984: (10.6, 1508, 306, 499),
        11008: (12.8, 1511, 0, 518), 13056: (17.7, 1170, None, 550), 15104: (23.4, 0, None, 387),
        17152: (30.0, None, None, 416), 21248: (45.5, None, None, 314), 22272: (49.9, None, None, 317),
        23296: (54.5, None, None, 0),
    },
}  # fmt: skip


def published_model(width: int, layers: int) -> ModelConfig:
    """Return the GPT-2 of the paper's figures: head and table apart, 1024 tokens."""
    return ModelConfig(
        vocab_size=_VOCAB, context_length=_SEQ, num_layers=layers, embed_dim=width,
        num_heads=width // _HEAD_DIM, tie_embeddings=False,
    )  # fmt: skip


def flops(model: ModelConfig, sequences: int) -> float:
    """Return the FLOPs of a step as the paper counts them: attention over the full square, nothing twice."""
    S, E, L, V = model.context_length, model.embed_dim, model.num_layers, model.known_vocab_size
    forward = L * (4 * S * E * 4 * E + 8 * S * E**2 + 4 * S**2 * E) + 2 * S * E * V
    return 3.0 * forward * sequences


def tiled_speed(width: int, layers: int, machine: Machine, setting: Setting = SETTING) -> dict[str, float]:
    """Return what the simulated step reaches: tflops (0 if the host's memory does not hold it), and the rest.

    Returns:
      tflops, seconds, tasks, moved and host (bytes), idle.
    """
    model = published_model(width, layers)
    cuts = math.ceil(width / setting.width_tile)
    tile = math.ceil(width / cuts / _HEAD_DIM) * _HEAD_DIM
    sizes = TileSizes(
        batch=setting.batch_tile, embed=tile, mlp=math.ceil(4 * width / (2 * cuts)), heads=tile // _HEAD_DIM
    )
    options = StepOptions(accumulate=setting.sequences // setting.part, flash=True)
    graph = gpt2_step(model, sizes, setting.sequences, _SEQ, options).graph
    try:
        made = simulate(graph, machine, A100_TF32, setting.policy)
    except UserError as full:
        if "host" not in str(full):
            raise
        return dict(tflops=0.0, seconds=math.inf, tasks=len(graph.tasks), moved=0, host=math.inf, idle=1.0)
    return dict(
        tflops=flops(model, setting.sequences) / made.seconds / 1e12, seconds=made.seconds,
        tasks=len(graph.tasks), moved=made.moved, host=made.peak[0], idle=made.idle,
    )  # fmt: skip


def fsdp_bytes(width: int, layers: int, gpus: int, bytes_per_value: int, setting: Setting = SETTING) -> float:
    """Return the bytes that FSDP needs on each GPU, without offload or rematerialisation.

    16 bytes a parameter spread over the GPUs; the block in use and the one fetched ahead, whole, and the
    gradients of one; what the backward pass needs of the GPU's sequences; logits and their gradient.
    """
    model = published_model(width, layers)
    tokens = setting.sequences // gpus * _SEQ
    block = 12 * width**2
    # Of a token and layer: 8 vectors of the width, 2 of the MLP's, and the probabilities of every head.
    kept = 16 * width + model.num_heads * _SEQ
    return (
        16 * model.num_params / gpus
        + 3 * bytes_per_value * max(block, _VOCAB * width)
        + bytes_per_value * tokens * layers * kept
        + 2 * 4 * tokens * _VOCAB
    )


def fsdp_largest(machine: str, layers: int, bytes_per_value: int) -> float:
    """Return the billions of parameters of the largest published width that FSDP's bytes fit."""
    gpus = len(get_machine(machine).workers)
    sizes = PUBLISHED[machine, layers]
    fitting = [w for w in sizes if fsdp_bytes(w, layers, gpus, bytes_per_value) <= _GPU_BYTES]
    return max((sizes[w][0] for w in fitting), default=0.0)


def largest(device_megabytes: Sequence[int], host_megabytes: Sequence[int]) -> Found:
    """Find the widest model of a depth for devices and hosts of some sizes: in tiles, offloaded, plain."""
    widths = [32 * i for i in range(1, 33)]
    batch, seq, layers = 4, 32, 2

    def model(width):
        return ModelConfig(vocab_size=256, context_length=seq, num_layers=layers, embed_dim=width,
                           num_heads=width // 16, tie_embeddings=False)  # fmt: skip

    def graph(width):
        tile = min(width, 128)
        sizes = TileSizes(embed=tile, mlp=4 * tile, heads=tile // 16)
        return gpt2_step(model(width), sizes, batch, seq, StepOptions()).graph

    def plain_bytes(width, on_device=16):
        tokens = batch * seq
        kept = layers * tokens * (16 * width + width // 16 * seq) + 2 * tokens * 256
        return on_device * model(width).num_params + 4 * kept

    def fits_tiles(width, device, host):
        machine = gpu_machine("GPU", 1, kind="gpu", gpu_bytes=device, host_bytes=host, pcie=4e9, nvlink=1e9)
        try:
            simulate(graph(width), machine, _SHEET)
        except UserError:
            return False
        return True

    def widest(fits):
        low, high = 0, len(widths)  # the first `low` fit
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(widths[middle - 1]) else (low, middle - 1)
        return model(widths[low - 1]).num_params if low else 0

    metrics, rows, tiles = {}, [], {}
    for device in (1e6 * size for size in device_megabytes):
        for host in (1e6 * size for size in host_megabytes):
            tiles[device, host] = widest(lambda w, d=int(device), h=int(host): fits_tiles(w, d, h))
            offload = widest(
                lambda w, d=device, h=host: plain_bytes(w, 8) <= d and 8 * model(w).num_params <= h
            )
            plain = widest(lambda w, d=device: plain_bytes(w) <= d)
            values = dict(tiles=tiles[device, host], offload=offload, plain=plain)
            name = f"{device / 1e6:.0f}MB-{host / 1e6:.0f}MB"
            metrics |= {f"largest/{kind}/{name}": float(value) for kind, value in values.items()}
            millions = [f"{value / 1e6:.3g} M" for value in values.values()]
            rows.append([f"{device / 1e6:.0f}", f"{host / 1e6:.0f}", *millions])
    least, most = 1e6 * min(host_megabytes), 1e6 * max(host_megabytes)
    small, big = 1e6 * min(device_megabytes), 1e6 * max(device_megabytes)
    growth = tiles[small, most] / max(1, tiles[small, least]) / (most / least)
    spread = tiles[big, least] / max(1, tiles[small, least])
    per_byte = "largest model in tiles per byte of the host's memory, largest host over smallest"
    wider = (
        f"largest model in tiles, a device {big / small:.0f} times as large; the host sets it, so under 1.5"
    )
    claims = [
        Claim(per_byte, _PAPER, growth, 0.75 <= growth <= 1.25),
        Claim(wider, _PAPER, spread, spread < 1.5),
    ]
    head = ["device MB", "host MB", "tiles", "optimizer offloaded", "all on the device"]
    return metrics, claims, {"Largest model, in parameters": markdown_table(head, rows)}


def redraw(machines: Sequence[str], every: int, sequences: int, out: Path) -> Found:
    """Simulate the published models on the published machines.

    Args:
      machines: names, each with published figures.
      every: take each so many of the published sizes, the last three always.
      sequences: a step.
      out: where published.png is written.
    """
    metrics, claims, rows, curves = {}, [], [], {}
    cases = [case for case in PUBLISHED if case[0] in machines]
    for name, layers in cases:
        table = PUBLISHED[name, layers]
        widths = list(table)
        chosen = sorted({*widths[::every], *widths[-3:]})
        for width in tqdm(chosen, desc=f"{name}, {layers} layers", unit="model"):
            made = tiled_speed(width, layers, get_machine(name), Setting(sequences))
            billions, bf16, tf32, nntile = table[width]
            curves.setdefault((name, layers), []).append((billions, made["tflops"], nntile))
            metrics |= {f"paper/{name}/{layers}/{billions}/{key}": float(value) for key, value in made.items()
                        if np.isfinite(value)}  # fmt: skip
            rows.append([name, layers, billions, f"{made['tflops']:.0f}", nntile, tf32, bf16,
                         f"{made['moved'] / 1e12:.3g}", f"{made['host'] / 1e9:.0f}"])  # fmt: skip
        ran = [(size, speed) for size, speed, _ in curves[name, layers] if speed]
        last = max(size for size, values in ((v[0], v) for v in table.values()) if values[3])
        ours, fsdp = max(size for size, _ in ran), fsdp_largest(name, layers, 4)
        case, fsdp_last = f"{name}, {layers} layers", max(v[0] for v in table.values() if v[2])
        claims += [
            Claim(f"{case}: billions of parameters of the largest tiled model, within 20 %", _PAPER, ours,
                  abs(ours / last - 1) <= 0.2, paper=last),
            Claim(f"{case}: of FSDP tf32's largest, by its bytes on a GPU; under half of that", _PAPER, fsdp,
                  fsdp < ours / 2, paper=fsdp_last),
        ]  # fmt: skip
        ratios = [speed / paper for _, speed, paper in curves[name, layers] if speed and paper]
        metrics[f"paper/{name}/{layers}/median_speed_over_published"] = statistics.median(ratios)
    _plot(curves, out / "published.png")
    head = ["machine", "layers", "B parameters", "simulated", "NNTile", "FSDP tf32", "FSDP bf16", "TB moved",
            "host GB"]  # fmt: skip
    return metrics, claims, {"Tflop/s, simulated and published": markdown_table(head, rows)}


def _plot(curves, path: Path) -> None:
    """Draw published speeds, with lines, and simulated ones, with crosses."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(curves), 4), layout="constrained")
    axes = figure.subplots(1, len(curves), squeeze=False)[0]
    for axis, ((name, layers), points) in zip(axes, curves.items(), strict=True):
        table = PUBLISHED[name, layers].values()
        for column, label in ((1, "FSDP bf16"), (2, "FSDP tf32"), (3, "NNTile tf32")):
            drawn = [(row[0], row[column]) for row in table if row[column] is not None]
            axis.plot(*zip(*drawn, strict=True), marker=".", label=f"{label}, published")
        axis.plot([p[0] for p in points], [p[1] for p in points], "kx--", label="tiles, simulated")
        label_axes(axis, "billions of parameters", "Tflop/s of a GPU", f"{name}, {layers} layers")
    share_legend(figure, axes)
    write_figure(path, figure)
