"""GPT-2 in tiles against the ordinary model: values, gradients, training."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.tiles.config import TilesConfig, TileSizes
from jaxllm.tiles.feed import put, put_batch, put_rates, put_tree, take, take_tree
from jaxllm.tiles.gpt2 import StepOptions, flat, gpt2_step, stacked
from jaxllm.tiles.trainer import TiledTrainer
from tests.models.random_params import random_params

MODEL = models.get_preset(
    "gpt2-nano", num_layers=1, embed_dim=12, num_heads=3, vocab_size=20, context_length=8,
    attention_implementation="xla",
)  # fmt: skip
SHAPE = (3, 7)


@functools.partial(jax.jit, static_argnums=0)
def reference(model, params, batch):
    """Return the ordinary model's loss and gradients."""

    def loss(params):
        return models.loss(
            model, params, batch["tokens"], batch["targets"], mask=batch["mask"],
            segment_ids=batch["segment_ids"],
        )[0]  # fmt: skip

    return jax.value_and_grad(loss)(params)


def feed(step, model, params, batch):
    rates = put_rates(step, 1e-3, 1, 0.9, 0.999)
    return put_tree(model, step.params, params) | put_batch(step, batch, model.vocab_size) | rates


def gradient_error(model, got, want):
    """Return the largest error of any gradient, relative to the largest element of its own."""
    got, want = flat(model, got), flat(model, jax.device_get(want))
    # Softmax does not see a bias of the keys: that gradient is zero but for rounding.
    paths = [path for path in want if path[-1] != "key_bias"]
    return np.max([np.abs(got[p] - want[p]).max() / np.abs(want[p]).max() for p in paths])  # NaN if any is


@pytest.mark.parametrize(
    "sizes, options, changes",
    [
        (TileSizes(heads=2, mlp=20), dict(flash=True), dict(tie_embeddings=False)),
        (TileSizes(embed=8), dict(accumulate=3), dict(num_layers=2)),
    ],
    ids=["heads and mlp, flash, untied", "width, in parts"],
)
def test_gradients_are_the_ordinary_model_s(sizes, options, changes, batch, run):
    model = dataclasses.replace(MODEL, **changes)
    params, data = random_params(model), batch(SHAPE, model.vocab_size)
    step = gpt2_step(model, sizes, *SHAPE, StepOptions(update=False, **options))
    left = run(step.graph, feed(step, model, params, data))
    loss, grads = reference(model, params, data)
    assert take(step.loss, left) / data["mask"].sum() == pytest.approx(float(loss), rel=1e-5)
    assert gradient_error(model, take_tree(model, step.grads, left), grads) <= 1e-5


def float64_gradients(model, params, batch):
    """Return the loss and gradients of a plain jitted float64 GPT-2 that shares no code with the library."""
    p = params
    seen = np.tril(np.ones((SHAPE[1],) * 2, bool)) & (
        batch["segment_ids"][:, :, None] == batch["segment_ids"][:, None]
    )
    segments = batch["segment_ids"]
    starts = np.array([[np.argmax(row == s) for s in row] for row in segments])
    positions = np.arange(SHAPE[1]) - starts

    def norm(x, w):
        x = x - x.mean(-1, keepdims=True)
        return x / jax.numpy.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w["scale"] + w["bias"]

    def loss(p):
        x = p["embed"]["tokens"][batch["tokens"]] + p["embed"]["positions"][positions]
        for i in range(model.num_layers):
            w = jax.tree.map(lambda w, i=i: w[i], p["layers"])
            a, h = w["attn"], norm(x, w["attn_norm"])
            q, k, v = (
                jax.numpy.einsum("btd,dhk->bthk", h, a[n]) + a[f"{n}_bias"] for n in ("query", "key", "value")
            )
            scores = jax.numpy.einsum("bthk,bshk->bhts", q, k) / np.sqrt(model.head_dim)
            probs = jax.nn.softmax(jax.numpy.where(seen[:, None], scores, -np.inf), -1)
            y = jax.numpy.einsum("bhts,bshk->bthk", probs, v)
            x = x + jax.numpy.einsum("bthk,hkd->btd", y, a["out"]) + a["out_bias"]
            m = w["mlp"]
            h = norm(x, w["mlp_norm"]) @ m["in"] + m["in_bias"]
            h = 0.5 * h * (1 + jax.numpy.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
            x = x + h @ m["out"] + m["out_bias"]
        logp = jax.nn.log_softmax(norm(x, p["final_norm"]) @ p["embed"]["tokens"].T)
        picked = jax.numpy.take_along_axis(logp, batch["targets"][..., None], -1)[..., 0]
        return -(picked * batch["mask"]).sum() / batch["mask"].sum()

    return jax.jit(jax.value_and_grad(loss))(p)


@pytest.mark.slow
def test_float64_gradients_are_exact_to_rounding(batch, run):
    with jax.enable_x64(True):
        model = dataclasses.replace(MODEL, param_dtype="float32", dtype="float32")
        params = jax.tree.map(lambda w: w.astype("float64"), random_params(model))
        data = batch(SHAPE, model.vocab_size)
        loss, grads = float64_gradients(model, params, data)
        step = gpt2_step(
            model, TileSizes(seq=4, vocab=12), *SHAPE, StepOptions(update=False), dtype="float64"
        )
        left = run(step.graph, feed(step, model, params, data))
        assert take(step.loss, left) / data["mask"].sum() == pytest.approx(float(loss), rel=1e-12)
        assert gradient_error(model, take_tree(model, step.grads, left), grads) <= 1e-12


@pytest.fixture(scope="module")
def cut_step():
    """Steps whose sums have several parts, cut evenly and so of few kernels: in order, and in any."""
    return {
        ordered: gpt2_step(MODEL, TileSizes(batch=1, seq=4), 3, 8, StepOptions(update=False, ordered=ordered))
        for ordered in (True, False)
    }


def shuffled(graph, seed):
    """Return a random topological order of a graph's tasks."""
    draw, waits, order = np.random.default_rng(seed), list(graph.waits_for), []
    ready = [number for number, count in enumerate(waits) if not count]
    while ready:
        order.append(ready.pop(draw.integers(len(ready))))
        for after in graph.successors[order[-1]]:
            waits[after] -= 1
            if not waits[after]:
                ready.append(after)
    return order


def in_order(graph, values, order):
    """Run tasks one by one, with no scheduler."""
    from jaxllm.tiles.access import Mode
    from jaxllm.tiles.kernels import compiled

    graph.check_order(order)
    values = jax.device_put(values, may_alias=False)
    for number in order:
        task = graph.tasks[number]
        if task.hint is None:
            modes = graph.kernels[task.kernel].modes
            uses = list(zip(modes, task.handles, strict=True))
            results = compiled(graph.kernels[task.kernel])(*[values[h] for m, h in uses if m is not Mode.W])
            values |= dict(zip([h for m, h in uses if m is not Mode.R], results, strict=True))
    return values


def test_sums_in_any_order_differ_by_rounding_and_ordered_ones_not_at_all(cut_step, batch):
    params, data = random_params(MODEL), batch((3, 8), MODEL.vocab_size)
    _, want = reference(MODEL, params, data)
    grads = {}
    for ordered, step in cut_step.items():
        values = feed(step, MODEL, params, data)
        runs = [in_order(step.graph, values, shuffled(step.graph, seed)) for seed in range(3)]
        grads[ordered] = [take_tree(MODEL, step.grads, left) for left in runs]
        assert max(gradient_error(MODEL, each, want) for each in grads[ordered]) <= 1e-5
    same = [jax.tree.map(np.array_equal, each, grads[True][0]) for each in grads[True]]
    assert all(jax.tree.leaves(same))
    assert not all(jax.tree.leaves([jax.tree.map(np.array_equal, e, grads[False][0]) for e in grads[False]]))


def test_an_ordered_run_has_the_same_bits_under_every_policy_and_number_of_devices(cut_step, batch, run):
    step = cut_step[True]
    values = feed(step, MODEL, random_params(MODEL), batch((3, 8), MODEL.vocab_size))
    results = [
        take_tree(MODEL, step.grads, run(step.graph, values, devices, policy=policy))
        for devices, policy in ((1, "eager"), (2, "lws"), (2, "dmdas"), (2, "dmdas"))
    ]
    for each in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, each, results[0])


@pytest.mark.slow
def test_fifty_steps_are_adamw_s(batch):
    """The second moment as a root, step 1 that writes moments, clipping, decay of matrices alone."""
    model = MODEL
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(3e-3, b2=0.95, weight_decay=0.1, mask=models_decay(model)),
    )
    params, data = random_params(model), batch((3, 8), model.vocab_size)
    options = StepOptions(b2=0.95, weight_decay=0.1, clip_norm=1.0)
    # The cut of `cut_step`, of which the kernels are compiled.
    trainer = TiledTrainer(model, TilesConfig(TileSizes(batch=1, seq=4)), 3, 8, options, jax.devices()[:1])
    trainer.load(params)
    state = optimizer.init(params)

    @jax.jit
    def plain(params, state):
        loss, grads = reference(model, params, data)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss, optax.tree.norm(grads)

    for _ in range(50):
        params, state, loss, norm = plain(params, state)
        metrics = trainer.step(data, 3e-3)
        assert float(metrics["loss"]) == pytest.approx(float(loss), abs=1e-4)
        assert float(metrics["grad_norm"]) == pytest.approx(float(norm), rel=1e-3)
    assert float(loss) < 2.0
    nu = optax.tree_utils.tree_get(state, "nu")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), trainer.moments()[1], nu)


def models_decay(model):
    from jaxllm.optim.decay import decay_mask

    return decay_mask(models.axes(model))


def test_a_tree_taken_apart_and_put_together_is_the_same():
    params = random_params(MODEL)
    jax.tree.map(np.testing.assert_array_equal, stacked(MODEL, flat(MODEL, params)), params)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(norm="rmsnorm", norm_bias=None), "norm=rmsnorm; use norm=layernorm"),
        (dict(position="rotary"), "position=rotary"),
        (dict(windows=(4,)), r"windows=\(4,\)"),
        (dict(sink_logit=0.0), "sink_logit=0.0"),
        (dict(dtype="bfloat16"), "dtype=bfloat16"),
        (dict(num_kv_heads=1), "num_kv_heads=1"),
    ],
)
def test_a_model_that_is_not_gpt2_is_refused(changes, message):
    with pytest.raises(UserError, match=f"tiles compute GPT-2 and the model has {message}"):
        gpt2_step(dataclasses.replace(MODEL, **changes), TileSizes(), *SHAPE)


def test_bad_sizes_are_one_sentence():
    with pytest.raises(UserError, match="tiles.sizes.seq is -1; it must be a whole number of at least 0"):
        TileSizes(seq=-1)
    with pytest.raises(UserError, match="a batch of 3 cannot be computed in accumulate=2 equal parts"):
        gpt2_step(MODEL, TileSizes(), *SHAPE, StepOptions(accumulate=2))


def test_targets_outside_of_the_vocabulary_do_not_count(batch):
    step = gpt2_step(MODEL, TileSizes(), *SHAPE)
    data = batch(SHAPE, MODEL.vocab_size)
    data["targets"][0] = -100
    values = put_batch(step, data, MODEL.vocab_size)
    weights = take(step.inputs[0]["weights"], values)
    assert not weights[0].any() and take(step.count, values) == weights.sum()
    assert put(step.count, 3.0)[step.count.first] == 3.0
