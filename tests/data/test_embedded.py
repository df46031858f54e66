import hashlib
import importlib.metadata
import json
import lzma
import subprocess
import sys

import pytest

from jaxllm.data import embedded
from jaxllm.errors import UserError

PUBLISHED = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}


@pytest.mark.smoke
def test_gpt2_files_have_their_published_hashes():
    merges = embedded.read_asset("vocab.bpe")
    encoder = json.dumps(embedded.gpt2_vocabulary()).encode()
    assert hashlib.sha256(merges).hexdigest() == PUBLISHED["vocab.bpe"]
    assert hashlib.sha256(encoder).hexdigest() == PUBLISHED["encoder.json"]


def test_sotu_has_all_addresses_by_year():
    addresses = embedded.sotu_addresses()
    years = [address["year"] for address in addresses]
    assert len(addresses) == 233 and years == sorted(years)
    assert sum(len(address["text"].encode()) for address in addresses) == 10_761_202
    assert set(addresses[0]) == {"year", "name", "party", "text"}


@pytest.mark.parametrize("damage", [b"not xz at all", lzma.compress(b"another text")])
def test_a_damaged_asset_is_refused(damage, monkeypatch, tmp_path):
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "vocab.bpe.xz").write_bytes(damage)
    monkeypatch.setattr(embedded.resources, "files", lambda package: tmp_path)
    with pytest.raises(UserError, match="vocab.bpe.xz is damaged.*reinstall jaxllm"):
        embedded.read_asset("vocab.bpe")


def test_importing_the_package_imports_nothing_heavy():
    heavy = {"grain", "jax", "tokenizers", "tensorflow_datasets", "tensorflow", "torch", "tqdm"}
    code = f"import sys, jaxllm.data; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_licences_of_embedded_data_are_in_the_notice():
    notice = embedded.resources.files("jaxllm").joinpath("..", "NOTICE")
    if not notice.is_file():
        pytest.skip(
            f"jaxllm {importlib.metadata.version('jaxllm')} is installed without its sources"
        )
    text = notice.read_text()
    assert "sotu.jsonl.xz" in text and "Copyright (c) 2019 OpenAI" in text
