"""A penalty on copying under evolving subnetworks."""

import dataclasses

import jax

from experiments.composition.runs import Finding, over_seeds, refusal, text_run
from jaxllm import interpret, models
from jaxllm.text import TrainConfig, prepare, train
from jaxllm.train import LossFunction

_PERIODS = dict(shortest=4, longest=12)  # tokens, of the spans that are repeated


def penalised_loss(model: models.ModelConfig, weight: float) -> LossFunction:
    """Return next-token loss and a weight times the attention to what followed earlier occurrences."""

    def loss(params, batch, key):
        mean, sums = models.loss(
            model, params, batch["tokens"], batch["targets"], mask=batch["mask"],
            segment_ids=batch["segment_ids"],
        )  # fmt: skip
        if weight and key is not None:
            spans = interpret.draw_repeated_spans(key, *batch["tokens"].shape, model.vocab_size, **_PERIODS)
            mean += weight * interpret.copying_penalty(model, params, spans) / spans.tokens_BT.size
        return mean, sums

    return loss


def penalised_subnetworks(config) -> Finding:
    """Train with and without the penalty, of the whole model and of subnetworks that grow to it."""
    found, of = over_seeds(config, _penalised)
    for alone, with_it in (("plain", "penalty"), ("subnetworks", "subnetworks, penalty")):
        found.claim(f"{alone}: the penalty takes off attention that copies, of the whole model, a token",
                    of[f"attention_that_copies/{alone}"] - of[f"attention_that_copies/{with_it}"],
                    above=0)  # fmt: skip
    found.claim("under subnetworks the penalty costs at most 2 % of held-out loss",
                of["heldout_loss/subnetworks, penalty"] / of["heldout_loss/subnetworks"] - 1,
                at_most=0.02)  # fmt: skip
    jobs = {arm: _penalised_job(config, arm, config.seeds[0]) for arm in PENALTIES}
    found.costs({arm: prepare(run, **options) for arm, (run, options) in jobs.items()}, config.rounds)
    found.refused["the penalty on layers that subnetworks skip in the host's memory"] = refusal(
        lambda: streamed_penalty(config)
    )
    return found


# Schedule of the subnetworks, and whether copying is penalised.
PENALTIES = {
    "plain": (None, False), "penalty": (None, True), "subnetworks": ("est-gpt2-like", False),
    "subnetworks, penalty": ("est-gpt2-like", True),
}  # fmt: skip


def _penalised_job(config, arm: str, seed: int):
    """Return (the run of an arm, its loss and devices)."""
    schedule, penalised = PENALTIES[arm]
    run, one = _small_run(config, arm, seed, schedule), jax.devices()[:1]
    model = prepare(run, devices=one).model  # whose vocabulary is known
    loss = penalised_loss(model, config.penalty if penalised else 0.0)
    return run, dict(loss=loss, devices=one)


def _penalised(config, seed: int) -> dict[str, float]:
    found = {}
    for arm in PENALTIES:
        run, options = _penalised_job(config, arm, seed)
        trained = train(run, **options)
        found[f"heldout_loss/{arm}"] = trained.evaluation["loss"]
        found[f"attention_that_copies/{arm}"] = copied_attention(trained.run.model, trained.params)
    return found


def _small_run(config, arm: str, seed: int, schedule: str | None) -> TrainConfig:
    model = models.get_preset(
        "gpt2-nano", vocab_size=None, num_layers=config.layers, embed_dim=config.width, num_heads=4,
        position="rotary", context_length=4 * config.seq_len,
    )  # fmt: skip
    name = f"penalty-{arm.replace(', ', '-')}"
    return text_run(config, name, seed, model=model, subnetwork=schedule)


def streamed_penalty(config):
    """Trace a step of penalised subnetworks whose layers come from the host's memory."""
    run = _small_run(config, "streamed", 0, "est-gpt2-like")
    run = dataclasses.replace(run, offload="state", model=dataclasses.replace(run.model, remat="full"))
    one = jax.devices()[:1]
    loss = penalised_loss(prepare(run, devices=one).model, config.penalty)
    job = prepare(run, loss=loss, devices=one)
    return job.train_step_at(0).lower(job.shapes, job.batch_shapes)


def copied_attention(model: models.ModelConfig, params: dict) -> float:
    """Return the attention to what followed earlier occurrences, of the head that gives most, a token."""
    spans = interpret.draw_repeated_spans(jax.random.key(99), 8, 48, model.vocab_size, **_PERIODS)
    penalty = jax.jit(interpret.copying_penalty, static_argnums=0)(model, params, spans)
    return float(penalty) / spans.tokens_BT.size
