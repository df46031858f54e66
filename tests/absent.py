"""Skip where real data is absent, and only there: data that is wrong must fail a test."""

import pytest

from experiments.shared.real_data import VARIABLE
from jaxllm.errors import UserError


def skip_if_absent(error: UserError) -> None:
    """Skip the test if the error says that the folder of real data, or a part of it, is not here."""
    if VARIABLE not in str(error):
        raise error
    pytest.skip(str(error))
