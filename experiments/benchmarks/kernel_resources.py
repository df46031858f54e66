"""What the vendors' compilers say of each kernel: registers, spills, on-chip memory, bytes moved.

    python -m experiments.benchmarks.kernel_resources            # prints the table
    python -m experiments.benchmarks.kernel_resources --write    # and puts it into kernels/README.md

Compiles every case of `kernel_cases.py` for TPU and GPU targets that are not here (extras:
tpu-targets, cuda-targets); a few minutes on 2 cores. Nothing runs. Registers and spills are ptxas',
shared memory XLA's launch, VMEM what Mosaic reserved. Bytes are the operands and results of each
loop, kernel and copy of the compiled program, once each and outside the chip's own memory, over the
least that the operation can move; a program that loops over chunks has none.
"""

import glob
import importlib.util
import math
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.sharding import SingleDeviceSharding
from tqdm import tqdm

from experiments.benchmarks.kernel_cases import CASES, Case
from jaxllm import targets
from jaxllm.cli.experiment import run_experiment
from jaxllm.config import Config
from jaxllm.report import markdown_table

TARGETS = ("v5e-1", "v5p-8", "v6e-1", "h100", "a100-80gb")
ARCHITECTURES = {"h100": "sm_90a", "a100-80gb": "sm_80"}
README = Path(__file__).parents[2] / "kernels" / "README.md"
BEGIN, END = "<!-- kernel_resources: begin -->", "<!-- kernel_resources: end -->"
_BYTES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_MOVES_NOTHING = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "while", "conditional"}


@dataclass(frozen=True)
class Row:
    """One line of the table; a field that the target does not have is empty."""

    case: str
    target: str
    kernels: str
    registers: str
    spills: str
    shared: str
    vmem: str
    bytes_over_floor: str


def measure(case: Case, target: str) -> Row:
    """Compile a case for a target and read what its compiler reports."""
    sharding = SingleDeviceSharding(targets.devices(target)[0])
    args = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in case.arguments]
    lowered = jax.jit(case.function, donate_argnums=case.donate).lower(*args)
    options = dict(targets.compiler_options(target))
    gpu = target in ARCHITECTURES
    with tempfile.TemporaryDirectory() as dump:
        if gpu:
            options["xla_dump_to"] = dump
        text = lowered.compile(compiler_options=options or None).as_text()
        names, *figures = _gpu(dump, target) if gpu else _tpu(text)
    names = sorted(n for n in names if not n.startswith(("loop_", "input_", "wrapped_")))
    moved = bytes_moved(text)
    over = "" if moved is None else f"{moved / case.floor:.2f}"
    return Row(case.name, target, ", ".join(names) or "XLA's own", *figures, over)


def bytes_moved(text: str) -> int | None:
    """Return what the entry computation reads and writes outside the chip, or None if it loops.

    Operands and results of every instruction, once each, unless they are in on-chip memory; a copy
    between the two counts its array once.
    """
    entry = text[text.index("\nENTRY") :]
    if re.search(r" while\(", entry):
        return None
    total, sizes = 0, {}
    for line in entry.splitlines():
        match = re.match(r"\s+(?:ROOT )?(%\S+) = (\(.*?\)|\S+) ([\w-]+)\(([^)]*)\)", line)
        if not match:
            continue
        name, kind, operation, operands = match.groups()
        arrays = re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", kind)
        all_bytes = [_BYTES.get(d, 1) * math.prod(int(n) for n in s.split(",") if n) for d, s, _ in arrays]
        on_chip = [re.search(r"S\(\d", layout) is not None for _, _, layout in arrays]
        sizes[name] = sum(b for b, chip in zip(all_bytes, on_chip, strict=True) if not chip)
        if operation.endswith("-done"):
            total += sum(all_bytes)
        elif operation not in _MOVES_NOTHING and not operation.endswith("-start"):
            total += sizes[name] + sum(sizes.get(n, 0) for n in re.findall(r"%[\w.-]+", operands))
    return total


def _tpu(text):
    """Return (names of kernels, "", "", "", the most VMEM of one), from the compiled program."""
    calls = [line for line in text.splitlines() if "tpu_custom_call" in line]
    names = {re.search(r"%([\w-]+)", line).group(1) for line in calls}
    used = re.findall(r'"memory_space":"1","offset":"\d+","size":"(\d+)"', "\n".join(calls))
    vmem = f"{max(int(n) for n in used) / 2**20:.1f} MiB" if used else ""
    return names, "", "", "", vmem


def _gpu(dump, target):
    """Return (names of kernels, most registers, spilled bytes, most shared memory, ""), from ptxas."""
    registers, spills, shared, names = [0], [0], [0], set()
    for path in glob.glob(f"{dump}/*.ptx"):
        if ".entry" not in Path(path).read_text():
            continue
        command = [_ptxas_path(), "-v", f"-arch={ARCHITECTURES[target]}", path, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        registers += [int(n) for n in re.findall(r"Used (\d+) registers", said)]
        spills += [int(n) for n in re.findall(r"(\d+) bytes spill stores", said)]
    for path in glob.glob(f"{dump}/*thunk_sequence.txt"):
        launches = Path(path).read_text()
        names |= set(re.findall(r"kCustomKernel.* (\w+) grid:", launches))
        shared += [int(n) for n in re.findall(r"shared_memory: (\d+)", launches)]
    return names, str(max(registers)), str(sum(spills)), f"{max(shared) / 1024:.0f} KiB", ""


def _ptxas_path() -> str:
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations if spec else ():
        for path in glob.glob(f"{folder}/*nvcc*/bin/ptxas"):
            return path
    return shutil.which("ptxas") or "ptxas"


def table(rows: list[Row]) -> str:
    """Render rows as Markdown."""
    head = ("case", "compiled for", "kernels", "registers", "spilled bytes", "shared memory", "VMEM",
            "bytes / floor")  # fmt: skip
    return markdown_table(head, (vars(row).values() for row in rows))


def write(text: str, path: Path = README) -> None:
    """Replace what stands between the markers of a file."""
    old = path.read_text()
    before, rest = old.split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")


@dataclass(frozen=True)
class KernelResourcesConfig(Config):
    """Which kernels to compile, and where the table goes."""

    only: str = ""  # cases whose name contains this
    write: bool = False  # replace the table in kernels/README.md


def main(config: KernelResourcesConfig) -> None:
    """Compile everything, print the table and write it where asked."""
    pairs = [(c, t) for c in CASES if config.only in c.name for t in TARGETS if targets.is_available(t)]
    rows = [measure(case, target) for case, target in tqdm(pairs, unit="program")]
    text = f"jax {jax.__version__}\n\n{table(rows)}"
    print(text)
    if config.write:
        write(text)


if __name__ == "__main__":
    run_experiment(main, KernelResourcesConfig)
