"""Which implementation runs: the one named, or the platform's when the program is lowered."""

import functools
import warnings

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P
from jaxllm_kernels import dispatch as module
from jaxllm_kernels.dispatch import dispatch

CANDIDATES = {
    "xla": lambda x: x + 1,
    "pallas_tpu": lambda x: x * 2,
    "pallas_gpu": lambda x: x * 3,
}


def lowered(platform, cannot=None):
    run = jax.jit(lambda x: dispatch("op", None, CANDIDATES, cannot or {}, x))
    return run.trace(jax.ShapeDtypeStruct((), jnp.float32)).lower(lowering_platforms=(platform,)).as_text()


def test_a_named_implementation_runs_anywhere():
    assert dispatch("op", "pallas_gpu", CANDIDATES, {}, jnp.float32(5)) == 15


def test_the_platform_lowered_for_chooses():
    assert dispatch("op", None, CANDIDATES, {}, jnp.float32(5)) == 6
    for platform, constant in (("cpu", "1.0"), ("tpu", "2.0"), ("cuda", "3.0")):
        text = lowered(platform)
        assert f"dense<{constant}" in text, platform
        assert sum(f"dense<{c}" in text for c in ("1.0", "2.0", "3.0")) == 1, platform


def test_what_cannot_run_falls_back_to_xla():
    assert "dense<1.0" in lowered("tpu", {"pallas_tpu": "too odd"})
    assert "dense<3.0" in lowered("cuda", {"pallas_tpu": "too odd"})


@pytest.mark.parametrize(("devices", "constant"), [(1, "2.0"), (2, "1.0")])
def test_arrays_that_the_compiler_may_spread_take_xla_outside_shard_map(devices, constant):
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    run = functools.partial(dispatch, "op", None, CANDIDATES, {})
    x = jax.ShapeDtypeStruct((2,), jnp.float32)
    part = jax.shard_map(run, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False)
    with jax.set_mesh(mesh):
        for function, expected in ((run, constant), (part, "2.0")):
            text = jax.jit(function).trace(x).lower(lowering_platforms=("tpu",)).as_text()
            assert f"dense<{expected}" in text


def test_a_named_implementation_that_cannot_run_says_why():
    with pytest.raises(ValueError, match="op: pallas_tpu cannot run this: too odd"):
        dispatch("op", "pallas_tpu", CANDIDATES, {"pallas_tpu": "too odd"}, 1.0)
    with pytest.raises(ValueError, match="'triton' is not one of"):
        dispatch("op", "triton", CANDIDATES, {}, 1.0)


def test_the_fallback_warns_once_and_only_where_it_happens(monkeypatch):
    module._warn_once.cache_clear()
    cannot = {"pallas_tpu": "too odd"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dispatch("op", None, CANDIDATES, cannot, 1.0)  # on a CPU nothing is lost
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with pytest.warns(UserWarning, match="op: falling back to xla, since too odd"):
        dispatch("op", None, CANDIDATES, cannot, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dispatch("op", None, CANDIDATES, cannot, 1.0)
    module._warn_once.cache_clear()


class _Turing:
    compute_capability = "7.5"


def test_a_gpu_before_ampere_takes_xla(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [_Turing()])
    module._has_triton.cache_clear()
    try:
        assert "dense<1.0" in lowered("cuda")
    finally:
        module._has_triton.cache_clear()
