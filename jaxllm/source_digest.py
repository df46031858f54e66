"""A hash of this library's code, part of the key of whatever is kept on disk and computed by it."""

import functools
import hashlib
from pathlib import Path

import jaxllm_kernels

import jaxllm


@functools.cache
def source_digest() -> str:
    """Return a hash of every module of jaxllm and its kernels."""
    digest = hashlib.sha256()
    for package in (jaxllm, jaxllm_kernels):
        folder = Path(package.__file__).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(folder)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
