"""What the README shows runs as it stands there."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm.cli.train import parse_config

ROOT = Path(__file__).parents[1]


def block(name):
    """Return the code that follows the comment of this name."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [code] = re.findall(rf"<!-- {name} -->\n```python\n(.*?)```", text, re.DOTALL)
    return code


@pytest.mark.smoke
def test_compose_trains_where_rounding_to_nearest_stands_still():
    """Steps of 3e-4 at 1.0, whose neighbours are 0.004 and 0.008 away, towards a line that is 0.03 off."""
    shown = {}
    exec(block("compose"), shown)
    x = jax.random.normal(jax.random.key(1), (256, 4))
    y = x @ jnp.array([[1.03], [0.97], [1.03], [0.97]]) + 1.03
    params, state = shown["params"], shown["state"]
    before = shown["loss"](params, x, y)
    for _ in range(300):
        params, state = shown["step"](params, state, x, y)
    assert all(p.dtype == jnp.bfloat16 for p in jax.tree.leaves(params))
    assert shown["loss"](params, x, y) < 0.2 * before

    still, state = shown["params"], optax.adam(3e-4).init(shown["params"])
    updates, state = optax.adam(3e-4).update(jax.grad(shown["loss"])(still, x, y), state, still)
    jax.tree.map(np.testing.assert_array_equal, optax.apply_updates(still, updates), still)


@pytest.mark.smoke
@pytest.mark.parametrize("page", ["README.md", "colab/tpu.ipynb"])
def test_commands_for_many_devices_ask_for_a_batch_and_a_width_that_they_divide(page):
    text = (ROOT / page).read_text(encoding="utf-8").replace(r"\\\n\",\n", " ").replace("\\\n", " ")
    commands = re.findall(r"jaxllm train ([^\n#`]*--mesh\.fsdp[^\n#`]*)", text.replace(r"\n", "\n"))
    assert len(commands) >= 3
    for command in commands:
        words = re.sub(r'["\\,]', " ", command).split()
        config = parse_config(words, prog="", description="")
        assert config.batch_size % config.mesh.fsdp == 0 == config.model.embed_dim % config.mesh.fsdp, command
