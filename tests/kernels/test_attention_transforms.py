"""Attention under jit, grad, vmap, scan, remat and shard_map, with logsumexp and first-token mass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from jaxllm_kernels.attention import api, attention, attention_with_lse, pallas_gpu, pallas_tpu

from tests.kernels.attention_oracle import answer, assert_close, make_call

TOLERANCE = 1e-5  # float32, relative to the largest number
SMALL = dict(B=2, T=20, H=4, G=2, K=8, segmented=True, window=12, sink="learned")


def fast(*names):
    """Run with every implementation, the named ones in the fast suite: interpreted kernels are slow."""
    marks = {name: () if name in names else pytest.mark.slow for name in ("xla", "pallas_tpu", "pallas_gpu")}
    params = [pytest.param(name, marks=mark) for name, mark in marks.items()]
    return pytest.mark.parametrize("implementation", params, indirect=True)


@pytest.fixture
def implementation(request, monkeypatch):
    """Name an implementation; the kernels are interpreted."""
    name = request.param
    if name != "xla":
        kernel = {"pallas_tpu": pallas_tpu, "pallas_gpu": pallas_gpu}[name]
        for rule in ("forward", "backward"):
            interpreted = functools.partial(getattr(kernel, rule), interpret=True)
            monkeypatch.setitem(api._traced_once(rule), name, interpreted)
    return name


def everything(call, implementation, wrap=lambda run: run):
    """Return (out, lse, four gradients) of a call through the api."""

    def run(query, key, value, sink, segments):
        return attention_with_lse(
            query, key, value, causal=call.causal, window=call.window, segment_ids_BT=segments,
            sink=sink, implementation=implementation,
        )  # fmt: skip

    def both(query, key, value, sink, segments, d_out, d_lse):
        (out, lse), pull = jax.vjp(lambda *x: wrap(run)(*x, segments), query, key, value, sink)
        return out, lse, *pull((out * 0 + d_out, d_lse))

    sink = None if call.sink is None else jnp.asarray(call.sink, jnp.float32)
    segments = None if call.segments is None else jnp.asarray(call.segments)
    arrays = [jnp.asarray(x) for x in (call.query, call.key, call.value)]
    return jax.jit(both)(*arrays, sink, segments, jnp.asarray(call.d_out), jnp.asarray(call.d_lse))


@pytest.mark.parametrize(
    "wrap",
    [pytest.param(lambda run: run, marks=pytest.mark.slow), jax.checkpoint],
    ids=["plain", "remat"],
)
@fast("xla", "pallas_tpu")
def test_output_and_logsumexp_carry_gradients(implementation, wrap):
    call = make_call(**SMALL)
    assert_close(everything(call, implementation, wrap), call, TOLERANCE)


def test_the_reference_returns_the_same():
    for call in (make_call(**SMALL), make_call(T=9, S=4, window=3)):
        d_lse = np.where(np.isfinite(answer(call).lse), call.d_lse, 0)
        call = call._replace(d_lse=d_lse)
        assert_close(everything(call, "reference"), call, TOLERANCE)


@fast("xla")
def test_vmap_and_scan_match_single_calls(implementation):
    calls = [make_call(**(SMALL | dict(seed=seed))) for seed in range(2)]
    stacked = [jnp.stack([getattr(call, name) for call in calls]) for name in ("query", "key", "value")]
    sinks = jnp.stack([jnp.asarray(call.sink, jnp.float32) for call in calls])

    def loss(query, key, value, sink):
        out = attention(query, key, value, sink=sink, implementation=implementation)
        return jnp.sum(out * jnp.cos(out)), out

    one = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True))
    single = [one(*(x[i] for x in (*stacked, sinks))) for i in range(2)]
    together = [jax.jit(jax.vmap(one))(*stacked, sinks)]
    if implementation == "xla":  # interpreted kernels compile slowly
        together.append(jax.lax.scan(lambda carry, x: (carry, one(*x)), 0, (*stacked, sinks))[1])
    for results in together:
        for i in range(2):
            for a, b in zip(jax.tree.leaves(results), jax.tree.leaves(single[i]), strict=True):
                assert np.abs(a[i] - b).max() <= TOLERANCE * 10


@fast("xla", "pallas_tpu")
def test_shard_map_over_batch_and_heads_matches_one_device(implementation):
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 simulated devices")
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    call = make_call(**(SMALL | dict(B=4)))
    spread = P("data", None, "model", None)

    def over_devices(run):
        return jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(spread, spread, spread, P("model"), P("data", None)),
            out_specs=(spread, P("data", "model", None)),
            # jax's interpreters of kernels do not say over which axes their results vary.
            check_vma=implementation == "xla",
        )

    assert_close(everything(call, implementation, over_devices), call, TOLERANCE)


def test_memory_grows_linearly_with_the_length():
    def temporaries(T):
        shape = jax.ShapeDtypeStruct((1, T, 2, 64), jnp.float32)

        def both(query, key, value, d_out):
            out, pull = jax.vjp(attention, query, key, value)
            return out, pull(d_out)

        return jax.jit(both).lower(*[shape] * 4).compile().memory_analysis().temp_size_in_bytes

    sizes = {T: temporaries(T) for T in (1024, 2048, 16384)}
    assert sizes[2048] <= 2.2 * sizes[1024] and sizes[16384] <= 8.8 * sizes[2048], sizes


def test_softmax_one_is_the_same_program_as_softmax_on_tpu():
    """With no sink the kernel gets a logit of -1e30: nothing but the operand's values differs."""

    def kernels(sink):
        shape = jax.ShapeDtypeStruct((1, 256, 2, 64), jnp.bfloat16)
        run = functools.partial(attention, sink=sink, implementation="pallas_tpu")
        jaxpr = jax.make_jaxpr(run)(*[shape] * 3)
        inner = jaxpr.eqns[-1].params["call_jaxpr"].eqns
        return [str(e) for e in inner if "pallas_call" in str(e.primitive)]

    assert len(kernels(None)) == 1 and kernels(None) == kernels(0.0)
