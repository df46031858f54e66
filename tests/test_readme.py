"""What the README shows runs as it stands there."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

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
