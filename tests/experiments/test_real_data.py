"""Real data is found where the environment says, and missed in one sentence."""

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
