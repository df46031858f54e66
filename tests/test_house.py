"""The rules of the house that a program can check."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# package -> what it must not import (prefixes)
FORBIDDEN = {
    "kernels/jaxllm_kernels": ["jaxllm.", "experiments"],
    "jaxllm": ["experiments", "flax.nnx", "tensorflow", "torch"],
    "jaxllm/models": ["jaxllm.train", "jaxllm.data", "jaxllm.optim", "jaxllm.generate", "jaxllm.vocabulary"],
    "jaxllm/data": ["jaxllm.train", "jaxllm.models", "jaxllm.optim", "jaxllm.generate", "jaxllm.vocabulary"],
    "jaxllm/vocabulary": ["jaxllm.train", "jaxllm.optim", "jaxllm.generate"],
    "jaxllm/optim": ["jaxllm.train", "jaxllm.models", "jaxllm.data", "jaxllm.generate"],
    "jaxllm/generate": ["jaxllm.train", "jaxllm.optim"],
    "jaxllm/score": ["jaxllm.train", "jaxllm.optim", "jaxllm.cli"],
    "jaxllm/pretrained": ["jaxllm.train", "jaxllm.optim", "jaxllm.generate"],
    "jaxllm/parallel": ["jaxllm.train", "jaxllm.models", "jaxllm.data", "jaxllm.optim"],
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", FORBIDDEN)
def test_arrows_run_one_way(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        for name in imports(path):
            for prefix in FORBIDDEN[package]:
                bad = name == prefix.rstrip(".") or name.startswith(prefix.rstrip(".") + ".")
                assert not bad, f"{path.relative_to(ROOT)} imports {name}"


# Position of the dtype among the arguments of what makes an array out of nothing.
DTYPE_AT = {"arange": 3, "zeros": 1, "ones": 1, "full": 2, "eye": 3}


def test_every_new_array_says_its_type():
    """Under jax_enable_x64 one that does not is of 64 bits, and meets others of 32."""
    for package in ("jaxllm", "kernels"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not (isinstance(node, ast.Call) and ast.unparse(node.func).startswith("jnp.")):
                    continue
                at = DTYPE_AT.get(ast.unparse(node.func).removeprefix("jnp."))
                said = at is None or len(node.args) > at or any(k.arg == "dtype" for k in node.keywords)
                assert said, f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)} says no dtype"


def test_kernels_is_a_source_root_and_not_a_package():
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.smoke
def test_importing_the_library_takes_under_a_second_beyond_jax():
    """All public modules, and none of the heavy packages that only some users need."""
    program = (
        "import time, jax, jax.numpy, sys; start = time.process_time()\n"
        "import jaxllm, jaxllm.models, jaxllm.optim, jaxllm.data, jaxllm.parallel, jaxllm.generate\n"
        "import jaxllm.pretrained\n"
        "print(time.process_time() - start)\n"
        "heavy = {'torch', 'tensorflow', 'transformers', 'matplotlib', 'orbax', 'grain', 'tyro'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    command, seconds = [sys.executable, "-c", program], []
    for _ in range(3):  # the least: a first import compiles byte code, and a busy core is slower
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        taken, heavy = result.stdout.strip().splitlines()[-2:]
        seconds.append(float(taken))
        if seconds[-1] < 1.0:
            break
    assert min(seconds) < 1.0
    assert heavy == "[]"
