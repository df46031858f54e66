"""The selective scan against a float64 loop: values, every gradient, states, documents, memory, meshes."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxllm_kernels.selective_scan import reference, selective_scan, selective_step
from jaxllm_kernels.selective_scan.xla import CHUNK

from tests.kernels.selective_scan_cases import NAMES, draw, draw_ids, exact_gradients, objective

# Largest difference over the largest exact value. bfloat16: the result's own rounding, of float32 sums.
TOLERANCE = {"float32": 3e-6, "bfloat16": 2.0**-8}
SHAPES = [(2, 1, 5, 3), (1, 7, 5, 3), (2, 33, 5, 3), (3, 70, 4, 16)]


@functools.partial(jax.jit, static_argnames="implementation")
def run(arrays, ids=None, implementation=None):
    """Return ((y, state), gradients of the objective), of every input."""

    def loss(arrays):
        five = (arrays[name] for name in NAMES[:5])
        out = selective_scan(
            *five, skip_D=arrays["skip"], state_BDN=arrays["state"], segment_ids_BT=ids,
            implementation=implementation,
        )  # fmt: skip
        return objective(*out), out

    (_, out), gradients = jax.value_and_grad(loss, has_aux=True)(arrays)
    return out, gradients


def exact(arrays, ids=None):
    five = (arrays[name] for name in NAMES[:5])
    return reference.selective_scan(*five, skip=arrays["skip"], state=arrays["state"], segment_ids=ids)


def assert_close(ours, theirs, tolerance, name=""):
    error = np.max(np.abs(np.asarray(ours).astype(np.float64) - theirs)) / np.max(np.abs(theirs))
    assert error <= tolerance, f"{name}: {error:.1e} > {tolerance:.1e}"


@pytest.mark.smoke
@pytest.mark.parametrize(("shape", "dtype", "packed"), [
    *zip(SHAPES, itertools.repeat("float32"), (False, False, True, False)),
    (SHAPES[2], "bfloat16", False),
])  # fmt: skip
def test_values_and_gradients_are_those_of_a_float64_loop(shape, dtype, packed):
    arrays = draw(*shape, dtype)
    ids = draw_ids(*shape[:2]) if packed else None
    (y, state), gradients = run(arrays, ids)
    assert y.dtype == dtype and state.dtype == jnp.float32
    expected = exact(arrays, ids)
    assert_close(y, expected[0], TOLERANCE[dtype], "y")
    assert_close(state, expected[1], TOLERANCE["float32"], "state")
    for name, theirs in exact_gradients(arrays, ids).items():
        assert gradients[name].dtype == arrays[name].dtype
        # A bfloat16 y reaches the objective rounded, and its cotangent is rounded once more.
        assert_close(gradients[name], theirs, TOLERANCE[dtype] * (1 if dtype == "float32" else 3), name)


@pytest.mark.torch
@pytest.mark.parametrize("shape", SHAPES[2:])
def test_values_and_gradients_are_those_of_transformers(shape):
    torch = pytest.importorskip("torch")
    mamba = pytest.importorskip("transformers.models.mamba.modeling_mamba")
    arrays = draw(*shape) | {"state": jnp.zeros((shape[0], *shape[2:]))}
    theirs = {n: torch.tensor(np.asarray(arrays[n]), requires_grad=True) for n in NAMES[:-1]}
    u, delta, A, B, C, skip = (theirs[name] for name in NAMES[:-1])
    # The fallback itself: a decorated function may fetch a kernel.
    scan = getattr(mamba.mamba_selective_scan, "__wrapped__", mamba.mamba_selective_scan)
    B, C = B.mT, C.mT  # [B, N, T]
    y, state = scan(u.mT, delta.mT, A, B, C, skip, return_last_state=True)
    (torch.sin(y + 0.3).sum() + torch.cos(2 * state).sum()).backward()
    (our_y, our_state), gradients = run(arrays)
    assert_close(our_y, y.detach().mT.numpy(), 1e-5, "y")
    assert_close(our_state, state.detach().numpy(), 1e-5, "state")
    for name, x in theirs.items():
        assert_close(gradients[name], x.grad.numpy(), 1e-5, name)


def test_steps_and_parts_give_the_whole():
    """One position after another, and a text in two parts: a cache of one state is enough."""
    arrays = draw(2, 33, 5, 3)
    (y, state), _ = run(arrays)
    u, delta, A, B, C, skip, h = (arrays[name] for name in NAMES)
    step = jax.jit(selective_step)
    for t in range(u.shape[1]):
        y_t, h = step(u[:, t], delta[:, t], A, B[:, t], C[:, t], h, skip_D=skip)
        np.testing.assert_allclose(y_t, y[:, t], atol=1e-5)
    np.testing.assert_allclose(h, state, atol=1e-5)
    h = arrays["state"]
    for part in (slice(0, 7), slice(7, None)):
        cut = [x[:, part] for x in (u, delta)], [x[:, part] for x in (B, C)]
        y_part, h = selective_scan(*cut[0], A, *cut[1], skip_D=skip, state_BDN=h)
        np.testing.assert_allclose(y_part, y[:, part], atol=1e-5)
    np.testing.assert_allclose(h, state, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_with_delta_0_changes_nothing(side):
    arrays = draw(2, 33, 5, 3)
    padded = dict(arrays)
    widths = ((0, 0), (4, 0) if side == "left" else (0, 4), (0, 0))
    for name, filler in (("u", 9.0), ("delta", 0.0), ("B", 9.0), ("C", 9.0)):
        padded[name] = jnp.pad(arrays[name], widths, constant_values=filler)
    (y, state), gradients = run(arrays)
    five = (padded[name] for name in NAMES[:5])
    ours = selective_scan(*five, skip_D=arrays["skip"], state_BDN=arrays["state"])
    real = slice(4, None) if side == "left" else slice(0, -4)
    np.testing.assert_allclose(ours[0][:, real], y, atol=1e-5)
    np.testing.assert_allclose(ours[1], state, atol=1e-5)

    def loss(A):
        y, state = selective_scan(
            padded["u"], padded["delta"], A, padded["B"], padded["C"],
            skip_D=arrays["skip"], state_BDN=arrays["state"],
        )  # fmt: skip
        return objective(y[:, real], state)

    assert_close(jax.jit(jax.grad(loss))(arrays["A"]), np.asarray(gradients["A"], np.float64), 1e-5)


def test_documents_do_not_see_each_other():
    """In the reference, which the implementations equal."""
    arrays = draw(1, 40, 5, 3)
    u, delta, A, B, C = (arrays[name] for name in NAMES[:5])
    ids = np.repeat([[3, 8, 3]], (13, 20, 7), axis=1)
    y, state = reference.selective_scan(u, delta, A, B, C, segment_ids=ids)
    for part in (slice(0, 13), slice(13, 33), slice(33, None)):
        alone, last = reference.selective_scan(u[:, part], delta[:, part], A, B[:, part], C[:, part])
        np.testing.assert_allclose(y[:, part], alone, atol=1e-12)
    np.testing.assert_allclose(state, last, atol=1e-12)


def test_linear_in_inputs_and_in_states():
    arrays = draw(2, 33, 5, 3)
    u, delta, A, B, C, skip, state = (arrays[name] for name in NAMES)
    f = jax.jit(lambda u, h: selective_scan(u, delta, A, B, C, skip_D=skip, state_BDN=h))
    both, apart = f(2 * u, -3 * state), (f(u, 0 * state), f(0 * u, state))
    for ours, of_u, of_state in zip(both, *apart, strict=True):
        assert_close(ours, np.asarray(2 * of_u - 3 * of_state, np.float64), 1e-5)


def test_strong_decay_and_long_texts_stay_finite():
    arrays = draw(1, 500, 4, 3) | {"A": jnp.full((4, 3), -1e4)}
    (y, state), gradients = run(arrays)
    assert all(np.isfinite(x).all() for x in (y, state, *gradients.values()))
    assert_close(y, exact(arrays)[0], 3e-6)


@functools.cache
def temporary_bytes(T, of):
    B, D, N = 1, 64, 16
    shapes = (B, T, D), (B, T, D), (D, N), (B, T, N), (B, T, N)
    loss = lambda *arrays: jnp.sum(jnp.sin(of(*arrays)))
    step = jax.jit(jax.grad(loss, argnums=tuple(range(5))))
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return step.lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def associative(u, delta, A, B, C):
    decay, new = jnp.exp(delta[..., None] * A), (delta * u)[..., None] * B[:, :, None]
    join = lambda left, right: (left[0] * right[0], right[0] * left[1] + right[1])
    return jnp.einsum("btdn,btn->btd", jax.lax.associative_scan(join, (decay, new), axis=1)[1], C)


def test_memory_is_linear_in_time_and_an_eighth_of_the_associative_scans():
    ours = lambda *arrays: selective_scan(*arrays)[0]
    assert temporary_bytes(1024, ours) <= 2.05 * temporary_bytes(512, ours)
    assert 8 * temporary_bytes(512, ours) <= temporary_bytes(512, associative)
    # The states before every chunk, the least that this algorithm saves, and six arrays like u.
    assert temporary_bytes(1024, ours) <= 4 * 1024 * 64 * (16 / CHUNK + 6) + 2**20


@pytest.mark.parametrize("checked", [True, False])
def test_rows_and_channels_split_over_a_mesh(checked):
    """Equal to one device, nothing gathered, and no device waits for another inside the loop."""
    arrays = draw(4, 40, 8, 3)
    ids = draw_ids(4, 40)
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    of_T, narrow, of_D = P("data", None, "tensor"), P("data"), P("tensor")
    specs = dict(zip(NAMES, (of_T, of_T, of_D, narrow, narrow, of_D, P("data", "tensor")), strict=True))

    def on_part(arrays, ids):
        five = (arrays[name] for name in NAMES[:5])
        return selective_scan(
            *five, skip_D=arrays["skip"], state_BDN=arrays["state"], segment_ids_BT=ids
        )  # fmt: skip

    scan = jax.shard_map(
        on_part, mesh=mesh, in_specs=(specs, narrow), out_specs=(of_T, P("data", "tensor")), check_vma=checked
    )

    def loss(arrays):
        out = scan(arrays, ids)
        return objective(*out), out

    places = {name: jax.sharding.NamedSharding(mesh, spec) for name, spec in specs.items()}
    step = jax.jit(jax.value_and_grad(loss, has_aux=True), in_shardings=(places,))
    program = step.lower(arrays).compile()
    text = program.as_text()
    for line in text.splitlines():
        assert not re.search(r" (all-gather|all-to-all|collective-permute)(-start)?\(", line), line
        if " all-reduce(" in line:
            assert "while" not in line, f"in the loop: {line}"
    (_, out), gradients = program(jax.device_put(arrays, places))
    expected, expected_gradients = run(arrays, ids)
    for ours, theirs in zip(out, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for name in NAMES:
        assert_close(gradients[name], np.asarray(expected_gradients[name], np.float64), 3e-6, name)


def test_under_vmap_and_remat_and_with_nothing_to_do():
    arrays = draw(3, 7, 5, 3)
    u, delta, A, B, C = (arrays[name] for name in NAMES[:5])

    @jax.jit
    def both(u):
        one = lambda u, delta, B, C: selective_scan(u[None], delta[None], A, B[None], C[None])[0][0]
        rows = jax.vmap(one)(u, delta, B, C)
        loss = lambda u: jnp.sum(selective_scan(u, delta, A, B, C)[0] ** 2)
        return rows, jax.grad(jax.checkpoint(loss))(u), jax.grad(loss)(u)

    rows, again, once = both(u)
    np.testing.assert_allclose(rows, reference.selective_scan(u, delta, A, B, C)[0], atol=1e-5)
    np.testing.assert_allclose(again, once, atol=1e-5)
    y, state = selective_scan(u[:, :0], delta[:, :0], A, B[:, :0], C[:, :0], state_BDN=arrays["state"])
    assert y.shape == (3, 0, 5)
    np.testing.assert_array_equal(state, arrays["state"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": jnp.zeros((2, 7))}, r"u has shape \(2, 7\) and A \(5, 3\); expected \[B, T, D\]"),
        ({"delta": jnp.zeros((2, 7, 4))}, r"delta has shape \(2, 7, 4\).* need \(2, 7, 5\)"),
        ({"A": jnp.zeros((3, 5))}, r"A has shape"),
        ({"C": jnp.zeros((2, 7, 3), int)}, "C is int32; expected a float"),
        ({"segment_ids_BT": jnp.zeros((2, 6), int)}, r"segment_ids have shape \(2, 6\)"),
        ({"state_BDN": jnp.zeros((2, 3, 5))}, r"state has shape \(2, 3, 5\).* need \(2, 5, 3\)"),
        ({"implementation": "cuda"}, "'cuda' is not one of"),
    ],
)
def test_bad_input_is_named_in_one_sentence(change, message):
    arrays = draw(2, 7, 5, 3)
    five = [change.get(name, arrays[name]) for name in NAMES[:5]]
    options = {name: value for name, value in change.items() if name not in NAMES}
    with pytest.raises(ValueError, match=message):
        selective_scan(*five, **options)
