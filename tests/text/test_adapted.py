"""Runs that train an adapter, or some parameters, of a given model."""

import dataclasses
import json
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm import data, models
from jaxllm.adapt import LoraConfig
from jaxllm.errors import UserError
from jaxllm.parallel import HOST_MEMORY, MeshConfig
from jaxllm.text import load_adapted, load_run, prepare, train
from jaxllm.text.card import model_card
from jaxllm.text.load import export_adapter
from jaxllm.train import state
from tests.models.random_params import random_params

LORA = LoraConfig(rank=3, targets="query,out,mlp_in", alpha=6.0)
ONE = jax.devices()[:1]


def steps(run, number):
    state, batches, losses = run.init(jax.random.key(0)), run.batches(), []
    for _ in range(number):
        state, metrics = run.train_step(state, run.put(next(batches)))
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.params)


@pytest.fixture
def lora(tiny):
    """A run's config, and parameters to start from."""
    config = tiny(lora=LORA)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=257))
    return config, random_params(config.model)


@pytest.mark.slow
def test_three_steps_are_optax_by_hand_and_the_same_on_eight_devices(lora):
    config, base = lora
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, schedule="constant"))
    alone = prepare(config, start=base, devices=jax.devices()[:1])
    losses, params = steps(alone, 3)

    scale = 2.0
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(config.optim.make_schedule(4), b2=0.95, weight_decay=0.1),
    )

    def loss(adapter, batch):
        layers = {block: dict(weights) for block, weights in base["layers"].items()}
        for block, name, equation in (("attn", "query", "ldr,lrhk->ldhk"), ("attn", "out", "lhkr,lrd->lhkd"),
                                      ("mlp", "in", "ldr,lrf->ldf")):  # fmt: skip
            pair = adapter["layers"][block][name]
            layers[block][name] += scale * jnp.einsum(equation, pair["A"], pair["B"])
        return models.loss(config.model, base | {"layers": layers}, batch["tokens"], batch["targets"],
                           mask=batch["mask"], segment_ids=batch["segment_ids"])[0]  # fmt: skip

    adapter, wanted, batches = alone.start, [], alone.batches()
    moments, step = optimizer.init(adapter), jax.jit(jax.value_and_grad(loss))
    for _ in range(3):
        mean, gradient = step(adapter, next(batches))
        updates, moments = optimizer.update(gradient, moments, adapter)
        adapter = optax.apply_updates(adapter, updates)
        wanted.append(float(mean))
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    assert losses[2] < losses[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), params, adapter)

    spread = dataclasses.replace(config, mesh=MeshConfig(data=2, fsdp=2, tensor=2), accumulate=2)
    again, spread_params = steps(prepare(spread, start=base), 3)
    np.testing.assert_allclose(again, losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), spread_params, params)


@pytest.fixture(scope="module")
def alone():
    """Losses of one device, which the first case computes."""
    return []


@pytest.mark.slow
def test_dropout_of_an_adapter_is_the_same_on_one_device_and_on_a_mesh(lora):
    config, base = lora
    config = dataclasses.replace(config, lora=dataclasses.replace(LORA, dropout=0.5))
    alone, _ = steps(prepare(config, start=base, devices=jax.devices()[:1]), 3)
    spread = dataclasses.replace(config, mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    np.testing.assert_allclose(steps(prepare(spread, start=base), 3)[0], alone, rtol=1e-5)
    whole = dataclasses.replace(config, lora=LORA)
    assert abs(steps(prepare(whole, start=base, devices=jax.devices()[:1]), 3)[0][2] - alone[2]) > 1e-4


@pytest.mark.slow
@pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="XLA for CPUs aborts")
@pytest.mark.parametrize(
    "values, rtol",
    [
        (dict(offload="optimizer"), 1e-5),
        (dict(precision="mixed_o1"), 2e-3),
        (dict(precision="mixed_o2", offload="optimizer"), 5e-3),
        (dict(precision="bfloat16", optim="adamw_bf16_sr"), 5e-3),
    ],
    ids=str,
)
def test_an_adapter_on_a_mesh_under_offload_and_precisions(lora, values, rtol, alone, monkeypatch):
    """The base has the policy's type, the adapter is float32, and losses are near float32's on one device."""
    monkeypatch.setattr(state, "_WORTH_MOVING", 2**6)
    config, base = lora
    if not alone:
        alone.extend(steps(prepare(config, start=base, devices=jax.devices()[:1]), 4)[0])
    optim = dataclasses.replace(config.optim, name=values.get("optim", "adamw"))
    mesh = MeshConfig(data=1, fsdp=4, tensor=2)
    config = dataclasses.replace(config, mesh=mesh, **values | dict(optim=optim))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = prepare(config, start=base)
    losses, params = steps(run, 4)
    np.testing.assert_allclose(losses, alone, rtol=rtol)
    assert losses[3] < losses[0]
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"float32"}
    frozen = "float32" if config.precision in ("float32", "mixed_o1") else "bfloat16"
    assert {x.dtype.name for x in jax.tree.leaves(run.shapes.frozen)} == {frozen}
    moved = [x for x in jax.tree.leaves(run.shapes.opt_state) if x.sharding.memory_kind == HOST_MEMORY]
    assert bool(moved) == (config.offload == "optimizer")


@pytest.mark.slow
def test_a_run_resumes_and_loads_merged_while_its_base_is_there(tiny, tmp_path, capfd):
    whole = train(tiny(steps=2, out=str(tmp_path / "base")), devices=ONE)
    config = tiny(steps=3, start=str(tmp_path / "base"), lora=LORA, out=str(tmp_path / "adapted"))
    train(dataclasses.replace(config, stop_after=1), devices=ONE)
    assert "fine-tuning" in capfd.readouterr().err
    trained = train(config, devices=ONE)
    assert trained.steps == 2 and "resuming" in capfd.readouterr().err
    assert trained.evaluation["loss"] < whole.evaluation["loss"]
    sizes = json.loads((tmp_path / "adapted/checkpoints/3/checksums/metadata").read_text())["arrays"]
    assert not any("embed/" in name for name in sizes)

    model, params, tokenizer = load_run(tmp_path / "adapted")
    wanted = np.asarray(whole.params["layers"]["attn"]["query"])
    pair = trained.params["layers"]["attn"]["query"]
    wanted = wanted + 2.0 * np.einsum("ldr,lrhk->ldhk", pair["A"], pair["B"])
    np.testing.assert_allclose(params["layers"]["attn"]["query"], wanted, atol=1e-6)
    np.testing.assert_array_equal(params["embed"]["tokens"], whole.params["embed"]["tokens"])
    assert model == trained.run.model and tokenizer is not None

    card = model_card(str(tmp_path / "adapted"), adapter=True)
    assert "A LoRA adapter of base: rank 3, alpha 6, beside query,out,mlp_in." in card
    assert "library_name: \"peft\"" in card and "| steps | 3 of 8 x 16 tokens |" in card
    assert str(tmp_path) not in card and "base_model" not in card  # no folder of this machine
    assert export_adapter(tmp_path / "adapted", tmp_path / "adapter", card=card).config == LORA
    assert (tmp_path / "adapter" / "README.md").read_text() == card
    assert 'from_pretrained("PATH_TO/base")' in card
    kept = data.load_tokenizer(tmp_path / "adapter")
    assert kept.fingerprint == tokenizer.fingerprint
    for adapter in ("adapter", "adapted"):
        again = load_adapted(str(tmp_path / "base"), str(tmp_path / adapter))[1]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), again, params)
    with pytest.raises(UserError, match="trained a whole model and no adapter"):
        load_adapted(str(tmp_path / "base"), str(tmp_path / "base"))

    shutil.move(tmp_path / "base", tmp_path / "moved")
    with pytest.raises(UserError, match="holds a part of the model .*base', which cannot be read"):
        load_run(tmp_path / "adapted")
    moved = load_run(tmp_path / "adapted", base=str(tmp_path / "moved"))
    jax.tree.map(np.testing.assert_array_equal, moved[1], params)
    train(tiny(steps=3, seed=1, out=str(tmp_path / "base")), devices=ONE)
    with pytest.raises(UserError, match="trained on another model than .*base' .they differ in"):
        load_run(tmp_path / "adapted")
    with pytest.raises(UserError, match="adapter' holds was trained on another model"):
        load_adapted(str(tmp_path / "base"), str(tmp_path / "adapter"))
    with pytest.raises(UserError, match="other frozen parameters"):
        train(dataclasses.replace(config, steps=4), devices=ONE)


def test_train_only_trains_the_named_and_nothing_else(lora):
    config, base = lora
    config = dataclasses.replace(config, lora=LoraConfig(), train_only="final_norm,mlp_out")
    run = prepare(config, start=base)
    _, params = steps(run, 1)
    moved = {"final_norm": {"scale", "bias"}, "layers": {"mlp"}}
    assert {name: set(inside) for name, inside in params.items()} == moved
    frozen = run.task.frozen
    assert "out" not in frozen["layers"]["mlp"] and "in" in frozen["layers"]["mlp"]
    assert np.abs(params["layers"]["mlp"]["out"] - base["layers"]["mlp"]["out"]).max() > 0


def test_bad_input_is_told_before_anything_is_read(tiny, lora):
    for values, said in (
        (dict(lora=LORA), "lora.rank trains a part of a model .* name it with --start"),
        (dict(train_only="embed"), "train_only trains a part"),
        (dict(lora=LORA, train_only="embed"), "train_only does not go with lora.rank"),
        (dict(lora=LORA, engine="tiles"), "lora.rank does not go with engine=tiles"),
    ):
        with pytest.raises(UserError, match=said):
            prepare(tiny(data="/nowhere", **values))
    config = dataclasses.replace(lora[0], lora=LoraConfig(), train_only="final_nrom")
    with pytest.raises(UserError, match="did you mean 'final_norm'"):
        prepare(config, start=lora[1])
