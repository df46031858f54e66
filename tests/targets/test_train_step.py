"""Forecasts of jaxllm's own steps, for the machines they are planned for."""

import dataclasses

import jax
import pytest

from jaxllm import models, targets
from jaxllm.adapt import LoraConfig
from jaxllm.errors import UserError
from jaxllm.optim import OptimConfig
from jaxllm.parallel import MeshConfig
from jaxllm.subnetwork import Rates, Schedule, Stage
from jaxllm.targets import compiled
from jaxllm.targets.analytic import estimate
from jaxllm.targets.train_step import with_vocabulary
from jaxllm.text import TrainConfig, prepare, prepare_shapes
from jaxllm.text.precision import with_precision
from jaxllm.text.task import next_token_loss


def available(name):
    reason = "needs the compiler of a target that is not here"
    skip = pytest.mark.skipif(not targets.is_available(name), reason=reason)
    return pytest.param(name, marks=[pytest.mark.targets, skip])


def run(family="gpt2-nano", **changes):
    model = models.get_preset(family, num_layers=2)
    values = dict(model=model, seq_len=32, batch_size=8, precision="mixed_o1")
    return TrainConfig(**(values | changes))


# Each family on one kind of machine, and those with layers of their own kind on both.
PLACES = {
    "v5e-4": ("gpt2", "gpt-neo", "llama", "mamba", "deberta"),
    "h100": ("pythia", "gemma", "mamba", "bert"),
}


@pytest.mark.parametrize(
    ("family", "name"),
    [
        pytest.param(f"{family}-nano", *available(name).values, marks=available(name).marks)
        for name, families in PLACES.items()
        for family in families
    ],
)
def test_every_family_s_training_step_compiles(family, name):
    mesh = MeshConfig(fsdp=2) if name == "v5e-4" else MeshConfig()
    config = run(family, mesh=mesh, seq_len=128)  # which fills attention's blocks
    # An encoder is trained on tokens that are hidden from it, whichever those are.
    loss = None if config.model.why_not_decode is None else next_token_loss(with_precision(config))
    forecast = targets.compile_train_step(config, name, loss=loss)
    assert forecast.fits and forecast.flops and 0 < forecast.seconds < 1
    assert sum(forecast.breakdown.values()) == forecast.peak_bytes
    least = config.model.num_params * 4 // mesh.fsdp
    # A TPU pads small arrays to whole tiles; biases and gains are most of what these models have.
    most = least * (8 if name == "v5e-4" else 1.1)
    assert least <= forecast.breakdown["parameters"] <= most
    assert forecast.breakdown["optimizer"] == pytest.approx(2 * forecast.breakdown["parameters"], rel=0.01)
    # Nothing a step does is less than the model's own products; recomputation adds to them.
    assert sum(forecast.flops.values()) >= 0.98 * forecast.model_flops
    assert forecast.compute_seconds * forecast.target.peak_flops["bf16"] >= 0.9 * forecast.model_flops
    assert sum(forecast.flops.values()) <= 2 * forecast.model_flops
    assert forecast.silent_kernels == 0
    if name == "v5e-4":
        assert forecast.compiler_seconds > 0
        assert any("fsdp" in axis for axis in forecast.collective_bytes)


@pytest.mark.parametrize("name", [available("v5e-4")])
def test_an_adapters_step_has_no_gradients_and_moments_of_what_is_frozen(name):
    mesh = MeshConfig(fsdp=2, tensor=2)
    model = models.get_preset("llama-nano", num_layers=4, embed_dim=256, vocab_size=4096)
    whole = run(model=model, mesh=mesh, seq_len=128)
    made = {
        kind: targets.compile_train_step(config, name)
        for kind, config in (("whole", whole), ("lora", dataclasses.replace(whole, lora=LoraConfig(rank=8))))
    }
    lora = made["lora"]
    assert lora.breakdown["optimizer"] < 0.1 * made["whole"].breakdown["optimizer"]
    moments = made["whole"].breakdown["optimizer"]
    assert made["whole"].peak_bytes - lora.peak_bytes > 0.8 * moments
    assert sum(lora.flops.values()) < 0.95 * sum(made["whole"].flops.values())
    assert lora.model_flops < sum(lora.flops.values()) * 1.02


@pytest.mark.slow
@pytest.mark.parametrize("remat, most", [("full", 0.4), ("dots", 0.7)])
def test_what_layers_compute_again_is_not_kept_on_a_cpu(remat, most):
    """XLA for CPUs would merge it with what was computed first, were both in one place."""
    model = models.get_preset("gpt2-nano", num_layers=8, embed_dim=64, vocab_size=256)
    peaks = {
        kept: targets.compile_train_step(
            run(model=dataclasses.replace(model, remat=kept), seq_len=128, precision="float32"), "cpu"
        ).peak_bytes
        for kept in ("none", remat)
    }
    assert peaks[remat] < most * peaks["none"]


@pytest.mark.parametrize("name", [available("v5e-1"), available("h100")])
def test_layers_in_the_host_s_memory_cost_the_device_a_few_of_them(name):
    """Eight layers of GPT-2 in bfloat16: 14 MB each, and as much for gradients and for both moments."""
    model = models.get_preset("gpt2", num_layers=8, remat="offload", vocab_size=1024)
    optim = OptimConfig(name="adamw_bf16_sr")
    config = run(model=model, seq_len=256, precision="bfloat16", optim=optim, offload="state")
    here, away = (
        targets.compile_train_step(dataclasses.replace(config, offload=offload), name)
        for offload in ("none", "state")
    )
    layers = 8 * 12 * 768**2 * 2  # bytes of the layers' matrices
    inputs = 8 * config.tokens_per_step * 768 * 2
    assert here.host_bytes == pytest.approx(inputs, rel=0.02)
    # A TPU pads gradients' heads of 64.
    assert away.host_bytes == pytest.approx(4 * layers + inputs, rel=0.15)
    # Weights go out three times and back once, gradients back and out twice, moments out and back, and
    # inputs of layers out and back.
    assert away.host_bytes_moved == pytest.approx(11 * layers + 2 * inputs, rel=0.25)
    assert 0 < away.exposed_host_seconds <= away.host_seconds
    assert away.seconds > here.seconds and away.bound == "host"
    assert away.peak_bytes <= here.peak_bytes - 2 * layers  # of four; a block of rows of each comes back
    if name == "h100":  # such a step takes a TPU's compiler half a minute
        half = Schedule((Stage(1.0, Rates(layers=0.5, heads=0.5, mlp=0.5)),))
        cut = targets.compile_train_step(config, name, subnetworks=half)
        # Every layer is fetched, and half of what it computes is left; a conditional counts as if taken.
        assert cut.host_bytes == pytest.approx(away.host_bytes, rel=0.05)
        assert cut.peak_bytes <= here.peak_bytes - layers
        assert sum(cut.flops.values()) < 0.6 * sum(away.flops.values())
    estimated = estimate(config, name)
    assert estimated.host_bytes == pytest.approx(away.host_bytes, rel=0.25)
    assert estimated.host_seconds == pytest.approx(away.host_seconds, rel=0.25)


@pytest.mark.parametrize("name", [available("h100")])
def test_on_a_gpu_layers_are_scanned_only_where_all_is_computed_again(name):
    """An H100 took 58.7 ms for a step of GPT-2 scanned, 40.5 ms with layers apart."""
    for remat, loops in (("none", False), ("full", True)):
        config = run(seq_len=128, model=models.get_preset("gpt2-nano", num_layers=5, remat=remat))
        job = prepare_shapes(config, devices=targets.devices(name))
        text = job.train_step.lower(job.shapes, job.batch_shapes).as_text()
        stacks = text.count("tensor<5x8x128x64x")  # what a scan keeps of all layers, [L, B, T, D]
        assert bool(stacks) == loops


def test_the_step_is_the_one_that_training_runs():
    model = models.get_preset("gpt2-nano", vocab_size=None)
    config = run(model=model, tokenizer="bytes", mesh=MeshConfig(data=2, fsdp=2, tensor=2), accumulate=2)
    trained = prepare(config)
    planned = prepare_shapes(with_vocabulary(config))
    batch = trained.put(next(iter(trained.batches())))
    given = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), batch)
    assert planned.batch_shapes == given
    assert (
        planned.train_step.lower(planned.shapes, planned.batch_shapes).as_text()
        == trained.train_step.lower(trained.shapes, batch).as_text()
    )


@pytest.mark.slow
def test_accumulation_shrinks_the_activations():
    config = run(batch_size=32, seq_len=64, precision="float32")
    whole = targets.compile_train_step(config, "cpu")
    parts = targets.compile_train_step(dataclasses.replace(config, accumulate=8), "cpu")
    assert parts.compiler_temporaries < 0.5 * whole.compiler_temporaries
    assert parts.model_flops == whole.model_flops
    assert sum(parts.flops.values()) == pytest.approx(sum(whole.flops.values()), rel=0.02)
    # The live set as simulated from the text, against the compiler's own allocation: a CPU shares more.
    for forecast in (whole, parts):
        assert forecast.simulated_temporaries == pytest.approx(forecast.compiler_temporaries, rel=0.15)


@pytest.mark.parametrize("name", [available("v5e-1")])
def test_layers_of_a_pattern_as_long_as_the_model_are_rematerialised(name):
    def temporaries(remat):
        sizes = dict(num_layers=8, embed_dim=256, context_length=512, windows=7 * (64,) + (0,))
        model = models.get_preset("llama-nano", **sizes, remat=remat)
        config = run(model=model, batch_size=16, seq_len=512)
        return targets.compile_train_step(config, name).compiler_temporaries

    assert temporaries("full") < 0.5 * temporaries("none")


@pytest.mark.slow
def test_parameters_are_split_over_the_mesh():
    config = run(mesh=MeshConfig(data=1, fsdp=8))
    split = targets.compile_train_step(config, "cpux8")
    # Biases over heads and mlp are not split over fsdp: 5 % more than an eighth in a model this small.
    assert 1 <= split.breakdown["parameters"] / (config.model.num_params * 4 / 8) < 1.1
    assert "fsdp" in split.collective_bytes


@pytest.mark.parametrize("name", ["cpu", available("v5e-1")])
def test_a_decoding_step_reads_the_weights_and_the_cache(name):
    config = models.get_preset("llama-nano")
    forecast = targets.compile_decode_step(config, 4, 64, name)
    cache = 2 * 2 * 4 * 64 * config.num_kv_heads * config.head_dim * 4
    assert forecast.breakdown["cache"] >= cache
    assert forecast.breakdown["parameters"] >= config.num_params * 4
    assert forecast.bound == "memory" or name == "v5e-1"


@pytest.mark.parametrize("tensor, ways", [(4, 8), (8, 1)])
def test_a_decoding_step_s_cache_is_split_by_rows_and_by_heads(tensor, ways):
    """Four heads of keys and values: over eight devices along the tensor axis they are not split."""
    config = models.get_preset("llama-nano", embed_dim=64, num_heads=8, num_kv_heads=4)
    mesh = MeshConfig(data=8 // tensor, tensor=tensor)
    forecast = targets.compile_decode_step(config, 4, 64, "cpux8", mesh)
    keys_and_values = 2 * config.num_layers * 4 * 64 * config.num_kv_heads * config.head_dim * 4
    valid, length = 4 * 64 // mesh.data, 4
    assert forecast.breakdown["cache"] == keys_and_values // ways + valid + length


def test_the_vocabulary_is_the_tokenizer_s_where_its_name_says_it():
    open_config = dataclasses.replace(run().model, vocab_size=None)
    assert with_vocabulary(run(model=open_config, tokenizer="bpe:512")).model.vocab_size == 512
    assert with_vocabulary(run(model=open_config, tokenizer="gpt2")).model.vocab_size == 50257
    with pytest.raises(UserError, match="'char' depends on its text.*set model.vocab_size"):
        with_vocabulary(run(model=open_config, tokenizer="char"))


def test_a_batch_that_the_target_cannot_split_is_refused():
    with pytest.raises(UserError, match="batch_size 6 cannot be split over 8 devices"):
        targets.compile_train_step(run(batch_size=6), "cpux8")


@pytest.mark.parametrize("name", [available("v5e-8")])
def test_weights_split_over_fsdp_are_multiplied_whole(name):
    """Multiplied part by part, 96 of 768 channels at a time, they would leave a matrix unit's lanes empty."""
    model = models.get_preset("gpt2", num_layers=1, vocab_size=256)
    products = {}
    for axis, mesh in {"fsdp": MeshConfig(1, 8, 1), "data": MeshConfig(8, 1, 1)}.items():
        config = run(model=model, seq_len=1024, mesh=mesh)  # a row a device: 1.8 times, were they not
        products[axis] = targets.compile_train_step(config, name).flops["bf16"]
    assert products["fsdp"] <= 1.02 * products["data"], products


@pytest.mark.parametrize("name", [available("v5e-1"), available("v5e-8"), available("h100")])
def test_of_stacked_weights_a_step_holds_no_copy_but_bfloat16_gradients(name):
    """A bfloat16 copy of the stack, made before the loop, would add half of the weights' bytes.

    So would gradients in float32, which hold no more than the bfloat16 that products give.
    """
    # More than a TPU's vector memory holds; an eighth of the width fills its tiles. With heads of 128
    # XLA still copies the queries', keys' and values' stacks, into a layout that suits the products.
    sizes = dict(num_layers=64, embed_dim=1024, num_heads=16, vocab_size=256)
    model = models.get_preset("gpt2", remat="full", **sizes)
    devices = targets.get_target(name).num_devices
    config = run(model=model, batch_size=devices, seq_len=128, mesh=MeshConfig(1, devices, 1))
    forecast = targets.compile_train_step(config, name)
    assert forecast.compiler_temporaries < 0.75 * forecast.breakdown["parameters"], str(forecast)


@pytest.mark.parametrize("name", [available("v5e-8")])
def test_gradients_of_a_table_that_is_split_are_not_summed_whole(name):
    """A device sends the bfloat16 table and its gradient once; whole float32 sums are four times as much.

    The lookup's gradient is of its own columns, and needs no sum.
    """
    model = models.get_preset("gpt2", num_layers=1, embed_dim=512, num_heads=4, remat="full")
    config = run(model=model, seq_len=128, mesh=MeshConfig(1, 8, 1))
    forecast = targets.compile_train_step(config, name)
    table = 2 * model.vocab_size * 512
    assert forecast.collective_bytes["fsdp"] < 3.5 * table, str(forecast)


@pytest.mark.parametrize("name", [available("v5e-8")])
def test_gradients_of_split_weights_are_scattered(name):
    """Along fsdp a device sends the least, layers twice and gradients once; parts of those along data."""
    sizes = dict(num_layers=2, embed_dim=1024, num_heads=8, num_kv_heads=8, mlp_dim=2816, vocab_size=256)
    model = models.get_preset("llama-nano", remat="full", context_length=256, **sizes)
    config = run(model=model, seq_len=256, mesh=MeshConfig(2, 4, 1))
    sent = targets.compile_train_step(config, name).collective_bytes
    least = 3 * 2 * model.num_params * 3 / 4
    assert sent["fsdp"] < 1.02 * least and sent["data"] < 0.2 * least, (sent, least)
    assert sent["data+fsdp"] < 0.01 * least, (sent, least)  # norms' gains and the loss


@pytest.mark.slow
def test_tensor_shards_keep_their_part_of_a_sequence(monkeypatch):
    """Of what 16 layers keep, which outweighs all else that lives then, each of 4 shards has a quarter."""
    # The tests' own flags leave out what a user's program has, and arrays live longer without it.
    monkeypatch.setattr(compiled, "compiler_options", lambda target: {"xla_cpu_use_fusion_emitters": True})
    sizes = dict(num_layers=16, embed_dim=64, num_heads=4, num_kv_heads=4, vocab_size=64)
    model = models.get_preset("llama-nano", remat="full", context_length=256, **sizes)
    config = run(model=model, seq_len=256, batch_size=16, precision="float32", mesh=MeshConfig(2, 1, 4))
    kept = targets.compile_train_step(config, "cpux8").breakdown["activations: layers"]
    inputs = 16 * 4 * (16 // 2) * 256 * 64 // 4
    assert inputs == pytest.approx(estimate(config, "cpux8").activations)
    assert inputs < kept < 1.5 * inputs
