"""The closed-form cost of a training step against exact counts, jax's own residuals and a compiled step."""

import dataclasses
from functools import partial

import jax
import jax.extend
import jax.numpy as jnp
import pytest

from jaxllm import models, parallel
from jaxllm.adapt import Lora, LoraConfig
from jaxllm.errors import UserError
from jaxllm.models import transformer
from jaxllm.models.rotary import rotary_table
from jaxllm.optim import OptimConfig, make_optimizer
from jaxllm.parallel import MeshConfig
from jaxllm.targets import analytic, stacks
from jaxllm.targets.analytic import estimate
from jaxllm.targets.candidates import Search, candidates
from jaxllm.targets.catalog import get_target
from jaxllm.targets.trained import trained_products
from jaxllm.text import TrainConfig
from jaxllm.text.precision import PRECISIONS
from jaxllm.train.state import init_state, state_shardings

ONE = {"data": 1, "fsdp": 1, "tensor": 1}


def run(model="gpt2", batch_size=8, seq_len=128, **values):
    fields = {name: values.pop(name) for name in list(values) if name in ("remat", "windows", "vocab_size")}
    return TrainConfig(
        model=models.get_preset(model, **fields), batch_size=batch_size, seq_len=seq_len, **values
    )


@pytest.mark.parametrize("model", ["gpt2", "gpt-neo-125m", "tinyllama-1.1b", "smollm2-135m"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_parameter_bytes_are_those_of_the_shapes(model, precision):
    config = run(model, precision=precision)
    width = 2 if "bfloat16" == PRECISIONS[precision].param_dtype else 4
    assert estimate(config, "v5p-8").parameters == width * config.model.num_params


@pytest.mark.parametrize(
    "precision, bytes_a_parameter", [("float32", 8), ("mixed_o1", 8), ("mixed_o2", 12), ("bfloat16", 4)]
)
def test_adamw_keeps_two_moments_and_master_weights(precision, bytes_a_parameter):
    config = run(precision=precision)
    rest = estimate(config, "v5p-8").optimizer - bytes_a_parameter * config.model.num_params
    assert 0 <= rest < 100  # counters and the key


def test_state_bytes_are_those_of_arrays_placed_on_a_real_mesh():
    """Eight devices, sizes that no axis divides included: the vocabulary of 257 stays whole."""
    config = run("llama-nano", vocab_size=257, mesh=MeshConfig(2, 2, 2), optim=OptimConfig(name="adafactor"))
    mesh = parallel.make_mesh(config.mesh)
    axes = models.axes(config.model)
    optimizer = make_optimizer(config.optim, 10, axes)
    shapes = jax.eval_shape(lambda k: init_state(partial(models.init, config.model), optimizer, k),
                            jax.random.key(0))  # fmt: skip
    shardings = state_shardings(shapes, optimizer, axes, mesh)
    make = jax.jit(lambda k: init_state(partial(models.init, config.model), optimizer, k),
                   out_shardings=shardings)  # fmt: skip
    state = make(jax.random.key(0))
    mine = [leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state)]
    theirs = [leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state.params)]
    sizes = {"data": 2, "fsdp": 2, "tensor": 2}
    counted = analytic.count_state(config, sizes)
    assert (counted.parameters, counted.rest) == (sum(theirs), sum(mine) - sum(theirs))


@pytest.mark.parametrize("model", [pytest.param("gpt2", marks=pytest.mark.slow), "tinyllama-1.1b"])
def test_matmul_flops_are_those_of_the_traced_step(model):
    """Counted in the jaxpr of loss and gradient of two unrolled layers, every dot_general of it."""
    for remat in ("none", "full", "dots"):
        config = models.get_preset(
            model, num_layers=2, vocab_size=640, context_length=256, remat=remat, windows=(0,)
        )
        tokens = jax.ShapeDtypeStruct((1, 256), jnp.int32)
        step = jax.grad(lambda p, t: models.loss(config, p, t, t)[0])  # noqa: B023
        jaxpr = jax.make_jaxpr(step)(models.shapes(config), tokens)
        counted = sum(_dots(jaxpr.jaxpr)) / 256
        assert analytic.matmul_flops(config, 256) == pytest.approx(counted, rel=1e-3), remat


def two_parts(**fields):
    """Return a hybrid of a transformer and a Mamba, of unequal width and depth."""
    gpt = models.ModelConfig(num_layers=3, embed_dim=96, num_heads=4, vocab_size=640, context_length=256)
    mamba = models.MambaConfig(num_layers=6, embed_dim=64, inner_dim=160, vocab_size=640)
    return models.HybridConfig(parts=(gpt, mamba), **fields)


@pytest.mark.parametrize("model", [
    pytest.param("t5", marks=pytest.mark.slow), pytest.param("t5-first", marks=pytest.mark.slow), "mamba",
    pytest.param("hybrid", marks=pytest.mark.slow),
])  # fmt: skip
def test_matmul_flops_of_other_architectures_are_those_of_the_traced_step(model):
    """Both stacks of an encoder-decoder with all scores; a Mamba's and a hybrid's but for those in a scan."""
    shape = dict(num_layers=3, embed_dim=64, vocab_size=640)
    if model == "mamba":
        config = models.MambaConfig(**shape, inner_dim=160)
    elif model == "hybrid":
        config = two_parts(blocks=3, running=((0, 1), (0,), (1, 0)))
    else:
        first = dict(gated_mlp=False, tie_embeddings=True) if model == "t5-first" else {}
        config = models.EncoderDecoderConfig(
            **shape, num_encoder_layers=2, num_heads=4, head_dim=24, mlp_dim=96, **first
        )
    for remat in ("none", "full", "dots"):
        traced = dataclasses.replace(config, remat=remat)
        tokens = jax.ShapeDtypeStruct((1, 256), jnp.int32)

        def loss(params, tokens):
            encoded = models.encode(traced, params, tokens) if traced.start_id is not None else None  # noqa: B023
            hidden = models.trunk(traced, params, tokens, context=encoded)  # noqa: B023
            return models.hidden_loss(traced, params, hidden, tokens)[0]  # noqa: B023

        jaxpr = jax.make_jaxpr(jax.grad(loss))(models.shapes(traced), tokens)
        counted = sum(_dots(jaxpr.jaxpr)) / 256
        assert analytic.matmul_flops(traced, 256) == pytest.approx(counted, rel=0.05), remat


@pytest.mark.parametrize("model", ["mamba-130m", pytest.param("flan-t5-small", marks=pytest.mark.slow)])
def test_estimates_of_other_architectures_follow_what_is_kept_split_and_trained(model):
    plain = estimate(run(model, precision="mixed_o1", remat="none"), "v5e-1")
    full = estimate(run(model, precision="mixed_o1", remat="full"), "v5e-1")
    assert plain.parameters == 4 * models.PRESETS[model].num_params
    assert full.activations < plain.activations / 5 and full.matmul_flops > plain.matmul_flops
    twice = estimate(run(model, precision="mixed_o1", remat="none", batch_size=16), "v5e-1")
    assert twice.matmul_flops == pytest.approx(2 * plain.matmul_flops)
    adapted = run(model, precision="mixed_o1", remat="none", lora=LoraConfig(rank=4, targets="all"))
    lora = estimate(adapted, "v5e-1")
    assert lora.gradients < plain.gradients / 20 and lora.model_flops < plain.model_flops
    found = candidates(run(model, batch_size=16), get_target("v5e-8"), Search(remats=("full",)))
    assert {c.mesh.tensor for c in found} > {1} and {c.offload for c in found} >= {"none", "optimizer"}
    assert ("state" in {c.offload for c in found}) == (model == "mamba-130m")


def test_a_hybrid_is_estimated_from_its_parts():
    """One-hot it costs what the component does; mixed, both parts, and plans leave out streamed layers."""
    mixed = two_parts(blocks=3, tables="parts")

    def of(model):
        return TrainConfig(model=model, batch_size=8, seq_len=256)

    both, part, one_hot = (
        estimate(of(model), "v5e-1") for model in (mixed, mixed.parts[0], mixed.choose((0, 0, 0)))
    )
    assert both.parameters == 4 * mixed.num_params
    assert one_hot.matmul_flops == part.matmul_flops and one_hot.activations == part.activations
    assert one_hot.parameters == both.parameters and both.activations > 1.5 * part.activations
    of_one_block = of(two_parts(tables="parts"))
    for config, offloads in ((of(mixed), set()), (of_one_block, {"state"})):
        found = candidates(config, get_target("v5e-8"), Search(remats=("full",)))
        assert {c.mesh.tensor for c in found} > {1}
        assert {c.offload for c in found} == {"none", "optimizer"} | offloads


@pytest.mark.slow
def test_kept_bytes_of_projectors_are_what_autodiff_saves():
    """By jax's own account of two blocks more, whose layers keep their inputs alone: within a tenth."""
    one, three = (two_parts(blocks=n, remat="full", param_dtype="float32", dtype="bfloat16") for n in (1, 3))
    saved = [(stacks._saved(config, 64, 2) - stacks._saved(config, 64, 1)) / 64 for config in (one, three)]
    counted = [sum(stack.layers * stack.kept("full") for stack in stacks.stacks(config, 64))
               for config in (one, three)]  # fmt: skip
    assert counted[1] - counted[0] == pytest.approx(saved[1] - saved[0], rel=0.1)


def _dots(jaxpr, times=1):
    for equation in jaxpr.eqns:
        repeat = times * equation.params["length"] if equation.primitive.name == "scan" else times
        if equation.primitive.name == "dot_general":
            (contract, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval
            depth = 1
            for axis in contract:
                depth *= left.shape[axis]
            yield 2 * times * equation.outvars[0].aval.size * depth
        inner_values = equation.params.values()
        if equation.primitive.name == "cond":  # a branch a platform, the portable one last
            inner_values = equation.params["branches"][-1:]
        for value in inner_values:
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _dots(inner, repeat)


SHAPES, REMATS = ("gpt2", "tinyllama-1.1b", "smollm2-135m"), ("none", "dots", "full")


@pytest.mark.parametrize(
    ("model", "remat", "dtype"),
    [(model, remat, "bfloat16") for model in SHAPES for remat in REMATS]
    + [pytest.param(*pair, "float32", marks=pytest.mark.slow) for pair in zip(SHAPES, REMATS, strict=True)],
)
def test_kept_bytes_are_what_autodiff_saves(model, remat, dtype):
    """Residuals of one layer, weights left out, by jax's own account: within 3 %."""
    config = models.get_preset(model, num_layers=1, vocab_size=100, dtype=dtype, remat=remat)
    rows, shape = 2 * 64, (2, 64)
    params = models.shapes(config)["layers"]
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape[1:], p.dtype), params)
    x = jax.ShapeDtypeStruct((*shape, config.embed_dim), dtype)
    positions = jnp.broadcast_to(jnp.arange(64), shape)
    rotary = ()
    if config.position == "rotary":
        rotary = (rotary_table(positions, config.head_dim, config.rope_theta),)

    def layer(params, x):
        run = partial(transformer._layer, config, rotary=rotary, segment_ids_BT=None, sites=None)
        return run(params, x, 0, 0, None)[0]

    if remat != "none":
        names = {"full": "nothing_saveable", "dots": "dots_with_no_batch_dims_saveable"}
        layer = jax.checkpoint(layer, policy=getattr(jax.checkpoint_policies, names[remat]))
    residuals = lambda p, x: jax.vjp(layer, p, x)[1]
    # Not the tables of rotary positions, which all layers share.
    table = rotary[0][0].shape if rotary else None
    kept = [v for v in _distinct(jax.make_jaxpr(residuals)(params, x).jaxpr) if v.shape != table]
    of_rows = [v for v in kept if v.shape[:2] == shape or v.shape[:1] == (rows,)]
    counted = sum(v.size * v.dtype.itemsize for v in of_rows) / rows
    assert stacks.kept_bytes(config, remat) == pytest.approx(counted, rel=0.03)


def _distinct(jaxpr):
    """Return the avals of a jaxpr's results, each once: a reshaped array is the same bytes."""
    made_by = {out: equation for equation in jaxpr.eqns for out in equation.outvars}
    sources = {}
    for var in jaxpr.outvars:
        while isinstance(var, jax.extend.core.Var) and var in made_by:
            if made_by[var].primitive.name != "reshape":
                break
            var = made_by[var].invars[0]
        sources[id(var)] = var.aval
    return sources.values()


def test_more_parts_need_less_memory_for_activations_and_the_same_flops():
    one, four = (estimate(run(accumulate=n), "v5e-1") for n in (1, 4))
    assert four.activations < 0.3 * one.activations
    assert four.matmul_flops == one.matmul_flops
    assert four.gradients == 2 * one.gradients  # and their float32 sums
    assert four.bytes_moved > one.bytes_moved  # the weights are read four times


def test_keeping_less_costs_flops():
    kept = [estimate(run(remat=remat), "v5e-1") for remat in ("none", "dots", "full")]
    none, dots, full = kept
    assert none.activations > dots.activations > full.activations
    assert none.matmul_flops <= dots.matmul_flops < full.matmul_flops


def test_each_mesh_axis_sends_what_it_should():
    """Two devices: half of a gathered array is sent; a sum is sent once round and back."""
    config = run("gpt2", precision="float32")
    weights, row = 4 * config.model.num_params, 4 * config.model.embed_dim * config.tokens_per_step
    cases = {"data": MeshConfig(2, 1, 1), "fsdp": MeshConfig(1, 2, 1), "tensor": MeshConfig(1, 1, 2)}
    sent = {name: estimate(dataclasses.replace(config, mesh=mesh), "h100x2").collective_bytes
            for name, mesh in cases.items()}  # fmt: skip
    assert {name: list(axes) for name, axes in sent.items()} == {name: [name] for name in cases}
    assert sent["data"]["data"] == pytest.approx(weights, rel=1e-6)
    assert sent["fsdp"]["fsdp"] == pytest.approx(1.5 * weights, rel=0.001)
    assert sent["tensor"]["tensor"] == pytest.approx(12 * 4 * row)


def test_beyond_a_plane_of_a_slice_weights_are_sent_twice():
    """A v5p-128 is 4 x 4 x 4 chips: 16 are a plane, and gathers over all 64 are sums in XLA for TPUs."""
    meshes = {64: MeshConfig(1, 64, 1), 16: MeshConfig(4, 16, 1)}
    wide = {n: estimate(run("gpt2", batch_size=64, mesh=mesh), "v5p-128") for n, mesh in meshes.items()}
    sent = {n: e.collective_bytes["fsdp"] / (n - 1) * n for n, e in wide.items()}
    assert sent[64] == pytest.approx(2 * sent[16], rel=0.03)  # biases lie whole on each device
    assert estimate(run("gpt2", batch_size=64, mesh=meshes[64]), "v5e-64").collective_bytes["fsdp"] == (
        pytest.approx(sent[64] / 2 / 64 * 63, rel=1e-6)
    )


def test_an_axis_over_hosts_has_their_slower_network():
    config = run("gpt2", batch_size=16, mesh=MeshConfig(data=-1))
    inside, outside = estimate(config, "h100x8"), estimate(config, "h100x16")
    assert outside.network_seconds > 5 * inside.network_seconds


def test_seconds_are_the_roofline_or_the_network_at_the_chips_efficiency():
    target = dataclasses.replace(get_target("v5e-1"), efficiency=0.5)
    e = estimate(run("gpt2"), target)
    times = {"compute": e.compute_seconds, "memory": e.memory_seconds, "network": e.network_seconds}
    assert times[e.bound] == max(times.values())
    assert max(times.values()) < e.roofline_seconds < sum(times.values())
    assert e.seconds == 2 * e.roofline_seconds
    assert e.mfu == pytest.approx(e.model_flops / e.seconds / 197e12)
    slow = dataclasses.replace(e, network_seconds=9.0)
    assert (slow.seconds, slow.bound) == (18.0, "network")


def test_peak_is_near_that_of_the_step_compiled_for_the_cpu():
    """By the compiler's own account of a small model's whole step, within 40 % both ways."""
    config = run("gpt2-nano", batch_size=8, seq_len=128, remat="full")
    assert 0.6 < estimate(config, "cpu").peak_bytes / _compiled_peak(config) < 1.4


def _compiled_peak(config):
    from jaxllm.text import next_token_loss
    from jaxllm.train.step import make_train_step

    optimizer = make_optimizer(config.optim, 10, models.axes(config.model))
    state = jax.eval_shape(
        lambda: init_state(partial(models.init, config.model), optimizer, jax.random.key(0))
    )
    step = make_train_step(next_token_loss(config), optimizer)
    tokens = jax.ShapeDtypeStruct((config.batch_size, config.seq_len), jnp.int32)
    names = ("tokens", "targets", "segment_ids")
    batch = dict.fromkeys(names, tokens) | {"mask": jax.ShapeDtypeStruct(tokens.shape, bool)}
    m = jax.jit(step, donate_argnums=0).lower(state, batch).compile().memory_analysis()
    return m.argument_size_in_bytes + m.temp_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes


@pytest.mark.parametrize(
    "config, target, words",
    [
        (run(batch_size=6, mesh=MeshConfig(data=4)), "v5e-4", ["batch_size 6", "4 devices", "multiple of 4"]),
        (run(mesh=MeshConfig(fsdp=3)), "v5e-4", ["fsdp=3", "4 devices"]),
    ],
)
def test_bad_input_is_one_sentence(config, target, words):
    with pytest.raises(UserError) as error:
        estimate(config, target)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


@pytest.mark.parametrize("precision, width", [("mixed_o1", 4), ("bfloat16", 2)])
def test_what_is_frozen_has_no_gradients_and_moments(precision, width):
    """The sizes written out: rank 16 beside query and value of 12 layers of width 768."""
    config = run(precision=precision, lora=LoraConfig(rank=16))
    model, adapter = config.model, 12 * 2 * 16 * (768 + 768)
    e = estimate(config, "v5p-8")
    assert e.parameters == width * model.num_params + 4 * adapter and e.gradients == 4 * adapter
    assert 0 <= e.optimizer - 8 * adapter < 100
    full = estimate(run(precision=precision), "v5p-8")
    products = 12 * 12 * 768**2 + 768 * 50257
    tokens = config.tokens_per_step / get_target("v5p-8").num_devices
    assert full.model_flops - e.model_flops == (2 * products - 6 * adapter) * tokens
    some = estimate(run(precision=precision, train_only="mlp_out"), "v5p-8")
    assert some.gradients == width * 12 * 4 * 768**2 and some.parameters == width * model.num_params
    frozen = products - 12 * 4 * 768**2
    assert full.model_flops - some.model_flops == pytest.approx(2 * frozen * tokens)


def test_an_adapters_products_are_those_of_the_traced_step():
    config = models.get_preset("tinyllama-1.1b", num_layers=2, vocab_size=640, context_length=256)
    lora = Lora(config, LoraConfig(rank=16, targets="all"))
    adapter, tokens = jax.eval_shape(lora.init, jax.random.key(0)), jax.ShapeDtypeStruct((1, 256), jnp.int32)
    step = jax.grad(lambda a, base, t: models.loss(config, lora(a, base, None), t, t)[0])
    counted = sum(_dots(jax.make_jaxpr(step)(adapter, models.shapes(config), tokens).jaxpr)) / 256
    trained = trained_products(config, lora.config, None)
    assert analytic.matmul_flops(config, 256, trained=trained) == pytest.approx(counted, rel=0.02)


def test_a_search_for_an_adapter_leaves_out_what_adapters_do_not_do():
    config = run("tinyllama-1.1b", batch_size=16, lora=LoraConfig(rank=8))
    found = candidates(config, get_target("v5e-8"), Search(precisions=("any",)))
    assert {c.offload for c in found} == {"none", "optimizer"}
    assert {c.optim.name for c in found if c.precision == "bfloat16"} == {"adamw"}  # its weights are float32
