"""The data shipped inside the package: State of the Union addresses and GPT-2's vocabulary.

assets/README.md says where each comes from, under which licence, and how to rebuild it.
"""

import functools
import hashlib
import json
import lzma
from importlib import resources

from jaxllm.errors import UserError

# SHA-256 of the decompressed content; GPT-2's is that of OpenAI's file.
SHA256 = {
    "sotu.jsonl": "92671776c8cc7d60dc0cd4f6d2ca828b0b5f88e24a0affe353c4778ddb1683b1",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}


def read_asset(name: str) -> bytes:
    """Return the content of one embedded file, after checking its SHA-256.

    Raises:
      UserError: if the installed file was damaged.
    """
    packed = resources.files("jaxllm.data").joinpath("assets", f"{name}.xz").read_bytes()
    try:
        content = lzma.decompress(packed)
    except lzma.LZMAError:
        content = b""
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        raise UserError(
            f"the embedded file {name}.xz is damaged: its content does not have the expected "
            f"SHA-256 {SHA256[name]}; reinstall jaxllm"
        )
    return content


def sotu_addresses() -> list[dict]:
    """Return the 233 addresses by year, each {"year", "name", "party", "text"}.

    Examples:
      >>> addresses = sotu_addresses()
      >>> len(addresses), addresses[0]["year"], addresses[0]["name"], addresses[-1]["year"]
      (233, 1790, 'George Washington', 2021)
    """
    return [json.loads(line) for line in read_asset("sotu.jsonl").decode().splitlines()]


@functools.cache
def byte_alphabet() -> str:
    """Return the 256 printable characters that stand for bytes in GPT-2's files, in id order.

    Bytes that print come first, as themselves; the 68 others follow, shifted past U+0100.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return "".join(map(chr, printable)) + "".join(chr(256 + n) for n in range(256 - len(printable)))


def gpt2_merges() -> list[tuple[str, str]]:
    """Return GPT-2's 50,000 merges, best first, in the byte alphabet."""
    lines = read_asset("vocab.bpe").decode().splitlines()[1:]  # The first line is a version.
    return [tuple(line.split()) for line in lines]


def gpt2_vocabulary() -> dict[str, int]:
    """Return GPT-2's 50,257 tokens with their ids, as in its encoder.json."""
    merged = ["".join(pair) for pair in gpt2_merges()]
    return {token: i for i, token in enumerate([*byte_alphabet(), *merged, "<|endoftext|>"])}
