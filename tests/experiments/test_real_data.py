"""Real data is found where the environment says, and missed in one sentence."""

import re
from pathlib import Path

import pytest

from experiments.shared.real_data import VARIABLE, data_folder
from jaxllm.errors import UserError


def test_data_lies_where_the_environment_says(monkeypatch, tmp_path):
    (tmp_path / "arc").mkdir()
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert data_folder("arc") == tmp_path / "arc"
    with pytest.raises(UserError, match="no-such.*does not exist.*put it there, or give --data"):
        data_folder("no-such")
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(UserError, match=f"{VARIABLE} is not set.*with arc/easy; set it"):
        data_folder("arc", "easy")


def test_the_page_on_data_names_every_folder_that_is_read():
    experiments = Path(__file__).parents[2] / "experiments"
    page = (experiments / "DATA.md").read_text(encoding="utf-8")
    read = set()
    for path in experiments.rglob("*.py"):
        calls = re.findall(r"data_folder\(\s*((?:\"[\w.-]+\",?\s*)+)", path.read_text(encoding="utf-8"))
        read |= {part for call in calls for part in re.findall(r'"([\w.-]+)"', call)}
    assert len(read) > 30 and {part for part in read if part.removesuffix(".zip") not in page} == set()
