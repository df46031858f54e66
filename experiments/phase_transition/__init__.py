"""Do language models read less like people once their heads have learned to copy?

VERDICT: In part: where two layers learn to copy they lose 0.0017 nats a word more of their predictive power
than one layer (0.0008 in the mean with a batch at which they do not), and its peak comes before that; whether
the copying head does it is undecided, and on real text there is no fall (phase_transition_text).

RESULT (1 December 2026, small, 38 minutes on a busy core, seeds 0 to 2): in two layers predictive power falls
after its peak, by 0.0008 nats a word (0.0002 to 0.0014, means of two batches); at batch 32 by 0.0017 more
than in one layer (0.0007 to 0.0027), which does not fall (-0.0002). Its peak comes 0.7 doublings of the
tokens before the transition (0.2 to 1.1). At batch 16, on half of the tokens, copying was not learned, and
the fall is 0.0001, give or take 0.0009. Where copying is penalised it is not learned (0.4 of the null's
score, -0.3 to 1.1); predictive power then ends 0.0008 nats a word higher (-0.0011 to 0.0027): undecided, as
is what changes without the head that copies most.

    python -m experiments.phase_transition                    # small: 12 runs, half an hour on a core
    python -m experiments.phase_transition --preset debug     # half a minute

On your own model: `jaxllm.interpret.repeat_scores` finds heads that copy,
`jaxllm.interpret.copying_penalty` keeps them away; `jaxllm.interpret.psychometric_power`.

Models are trained on text that repeats itself (repeating_source.py), with log-spaced checkpoints. At each,
induction heads are scored (`jaxllm.interpret.repeat_scores`), and surprisal is put to predict the times of a
simulated reader who knows the text's bigrams and does not copy: psychometric predictive power, PPP. Here the
truth is known, so what the paper says of people can be tested for what it is made of:

- two layers, two batch sizes: when does copying emerge, where is PPP largest (judged on other sequences)?
- one layer, which cannot form induction heads: the negative control
- two layers, copying penalised throughout training: what is PPP without the transition?
- at the last checkpoint, the head that copies most is taken out, with its consequences and with all attention
  patterns kept, beside the head that copies least

What the same measures say of real reading times, `python -m experiments.reading_times` asks.

Aoyama and Wilcox, Language Models Grow Less Humanlike beyond Phase Transition (arXiv 2502.18802). Its figures
could not be read; the directions are those of its abstract.
"""

import functools
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.grid import check_seeds, code_digest, publish, run_grid, spread
from experiments.phase_transition import repeating_source as source
from experiments.phase_transition.curves import by_seed, copied, fall, peak, shift, transition
from jaxllm import interpret, models
from jaxllm.atomic import write_figure
from jaxllm.config import Count, NotNegative, Positive, Seed
from jaxllm.errors import UserError, unknown
from jaxllm.kept_result import kept_result
from jaxllm.models import ModelConfig, get_preset
from jaxllm.report import Claim, Report, decide, markdown_table, t_interval
from jaxllm.train import RunConfig, Task, to_dict, train
from jaxllm.train.checkpoint import Checkpoints

PAPER = "arXiv 2502.18802"
# name -> what it changes: (layers, batch, whether copying is penalised)
ARMS = {
    "2 layers": (2, 32, False),
    "2 layers, batch 16": (2, 16, False),
    "2 layers, copying penalised": (2, 32, True),
    "1 layer": (1, 32, False),
}
PLAIN, SMALL_BATCH, PENALISED, ONE_LAYER = ARMS
_LAGS = 2


@dataclass(frozen=True)
class PhaseTransitionConfig(RunConfig):
    """The runs, and how they are read."""

    steps: Count = 1600
    out: str = "runs/phase-transition"
    log_every: Count = 100
    arms: tuple[str, ...] = tuple(ARMS)
    seeds: tuple[Seed, ...] = (0, 1, 2)
    embed_dim: Count = 64
    context_length: Count = 64
    vocab_size: Count = 64
    learning_rate: Positive = 3e-3
    decay_steps: Count = 4000  # where the cosine would end
    penalty: NotNegative = 1e-3  # weight of the copying penalty
    checkpoints: Count = 18  # between a fortieth of the steps and all of them, evenly in their logarithm
    held_out: Count = 256  # sequences that the reader reads

    def __post_init__(self):
        super().__post_init__()
        for arm in self.arms:
            if arm not in ARMS:
                raise unknown("arm", arm, ARMS)
        check_seeds(self.seeds)
        if self.context_length < 2 * source.LONGEST:
            raise UserError(
                f"context_length is {self.context_length}; a span of {source.LONGEST} tokens must come "
                f"twice, so give {2 * source.LONGEST} or more"
            )

    @property
    def checkpoint_steps(self) -> tuple[int, ...]:
        """The steps whose parameters are looked at."""
        spaced = np.geomspace(max(1, self.steps / 40), self.steps, self.checkpoints)
        return tuple(sorted({int(round(step)) for step in spaced}))


def _debug() -> PhaseTransitionConfig:
    return PhaseTransitionConfig(
        arms=(PLAIN, PENALISED), seeds=(0, 1), steps=8, checkpoints=3, held_out=24, embed_dim=16,
        out="runs/phase-transition-debug",
    )  # fmt: skip


PRESETS = {"debug": _debug, "small": PhaseTransitionConfig}


def main(config: PhaseTransitionConfig, preset: str = "small") -> Report:
    """Train every arm with every seed, read its checkpoints, test the claims, write the report."""
    begun = time.time()
    runs = run_grid(config.arms, config.seeds, functools.partial(run_arm, config))
    plot(runs, config.out)
    report = Report(
        experiment="phase_transition", preset=preset, config=to_dict(config), seeds=list(config.seeds),
        metrics=metrics(runs), claims=claims(runs), seconds=time.time() - begun,
        sections={"The runs": summary(runs)},
    )  # fmt: skip
    return publish(report, config.out)


def model_config(config: PhaseTransitionConfig, arm: str) -> ModelConfig:
    """Return the model of an arm: pre-norm, two heads, rotary positions."""
    return get_preset(
        "gpt2-nano", vocab_size=config.vocab_size, context_length=config.context_length,
        num_layers=ARMS[arm][0], embed_dim=config.embed_dim, num_heads=2, position="rotary",
        rope_theta=1000.0, init_std=config.embed_dim**-0.5,
    )  # fmt: skip


def init_params(model: ModelConfig, key: jax.Array) -> dict:
    """Return parameters whose tied table starts small, and logits with it."""
    params = models.init(model, key)
    tokens = params["embed"]["tokens"] * (0.02 / model.init_std)
    return params | {"embed": params["embed"] | {"tokens": tokens}}


def make_task(config: PhaseTransitionConfig, arm: str, seed: int) -> Task:
    """Return next tokens of the repeating source, with or without the penalty."""
    model, (_, batch, penalised) = model_config(config, arm), ARMS[arm]
    weight = config.penalty if penalised else 0.0
    chain = source.make_source(seed, config.vocab_size)

    def batches() -> Iterator[dict[str, np.ndarray]]:
        draw = np.random.default_rng([seed, 1])
        while True:  # drawn many batches at a time: the chain's loop over positions is Python's
            tokens = source.draw_sequences(chain, draw, 16 * batch, config.context_length)
            for part in np.split(tokens, 16):
                yield {"tokens": part}

    def loss(params, batch, key):
        tokens = batch["tokens"]
        mean, sums = models.loss(model, params, tokens[:, :-1], tokens[:, 1:])
        if weight and key is not None:
            spans = interpret.draw_repeated_spans(
                key, *tokens.shape, model.vocab_size, shortest=source.SHORTEST, longest=source.LONGEST
            )
            mean += weight * interpret.copying_penalty(model, params, spans)
        return mean, sums

    def evaluate(params, mean_loss):
        return {"loss": mean_loss(params, itertools.islice(batches(), 4))[0]}

    return Task(functools.partial(init_params, model), models.axes(model), batches, loss, evaluate)


def run_arm(config: PhaseTransitionConfig, arm: str, seed: int) -> dict:
    """Train one run; return the curves of its checkpoints and its ablations. One that ended is kept."""
    out = Path(config.out, arm.replace(", ", "-").replace(" ", "-"), f"seed-{seed}")
    decisive = {
        name: value for name, value in to_dict(config).items()
        if name not in ("arms", "seeds", "out", "progress", "log_every")
    }  # fmt: skip
    return kept_result(
        out / "curves.json", lambda: _measure(config, arm, seed, out), arm=arm, seed=seed, run=decisive,
        code=code_digest("phase_transition/repeating_source.py"),
    )  # fmt: skip


def _measure(config: PhaseTransitionConfig, arm: str, seed: int, out: Path) -> dict:
    steps, model = config.checkpoint_steps, model_config(config, arm)
    run = RunConfig(
        steps=config.steps, seed=seed, out=str(out), keep_steps=steps, keep_last=1, eval_every=config.steps,
        save_every=config.steps, log_every=config.log_every, progress=False,
    )  # fmt: skip
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, 100, config.decay_steps)
    train(make_task(config, arm, seed), run, optimizer=optax.adamw(schedule, weight_decay=0.01))
    checkpoints = Checkpoints(out / "checkpoints")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), models.shapes(model)
    )
    reader = Reader(config, seed)
    curves: dict[str, list] = {name: [] for name in ("step", "tokens", *CURVES)}
    halves = []
    for step in steps:
        params = checkpoints.restore_params(step, shapes)
        heads = interpret.repeat_scores(
            model, params, jax.random.key(0), span=config.context_length // 2, sequences=64
        )
        power = reader.power(surprisal(model, params, reader.tokens))
        found = (
            heads.copying_LH.max(), heads.previous_LH.max(), heads.null, heads.repeat_loss,
            reader.loss(model, params), power.delta_log_likelihood,
        )  # fmt: skip
        for name, value in zip(
            ("step", "tokens", *CURVES), (step, step * _tokens_a_step(config, arm), *found), strict=True
        ):
            curves[name].append(float(value))
        halves.append(reader.halves(power))
    return curves | {"halves": halves, "ablated": _ablated(model, params, heads.copying_LH, reader)}


CURVES = ("copying", "previous", "null", "repeat_loss", "loss", "ppp")


def _tokens_a_step(config: PhaseTransitionConfig, arm: str) -> int:
    return ARMS[arm][1] * config.context_length


class Reader:
    """The simulated reader of a seed's text, on sequences that no model was trained on."""

    def __init__(self, config: PhaseTransitionConfig, seed: int):
        chain, draw = source.make_source(seed, config.vocab_size), np.random.default_rng([seed, 2])
        self.tokens = source.draw_sequences(chain, draw, config.held_out, config.context_length)
        self.times = source.reading_times(chain, self.tokens, draw)
        self.controls = source.reader_controls(chain, self.tokens)
        self.own_surprisal = source.bigram_surprisal(chain, self.tokens)

    def power(self, surprisal_NT: np.ndarray) -> interpret.PredictivePower:
        """Return the predictive power of a surprisal in bits, [N, T - 1]; whole sequences are held out."""
        rows = np.repeat(np.arange(len(self.tokens)), self.times.shape[1])
        controls = self.controls.reshape(len(rows), -1)
        return interpret.psychometric_power(
            self.times.ravel(), surprisal_NT.ravel(), controls, rows, lags=_LAGS
        )

    def halves(self, power: interpret.PredictivePower) -> list[float]:
        """Return the power on every other sequence, and on the rest."""
        odd = power.rows // self.times.shape[1] % 2
        return [float(power.per_word[odd == half].mean()) for half in (0, 1)]

    def loss(self, model: ModelConfig, params: dict) -> float:
        """Return nats a token of these sequences."""
        return float(surprisal(model, params, self.tokens).mean() * np.log(2))


def surprisal(model: ModelConfig, params: dict, tokens: np.ndarray) -> np.ndarray:
    """Return bits of each token but the first, float64 [N, T - 1]."""
    return _bits(_token_log_probs(model, params, tokens, None, False))


def _bits(log_probs) -> np.ndarray:
    return -np.asarray(log_probs, np.float64) / np.log(2)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _token_log_probs(model, params, tokens, layer_and_head, keep_patterns):
    read = tokens[:, :-1]
    if layer_and_head is None:
        hidden = models.trunk(model, params, read)
    else:
        hidden = interpret.hidden_without_head(
            model, params, read, *layer_and_head, keep_patterns=keep_patterns
        )
    return models.token_log_probs(model, params, hidden, tokens[:, 1:])


def _ablated(model: ModelConfig, params: dict, copying_LH: np.ndarray, reader: Reader) -> dict[str, float]:
    """Return how much PPP changes when a head is taken out of the last checkpoint."""
    whole = reader.power(surprisal(model, params, reader.tokens)).delta_log_likelihood
    order = np.dstack(np.unravel_index(np.argsort(copying_LH, axis=None), copying_LH.shape))[0]
    changes = {}
    for name, head in (("most", order[-1]), ("least", order[0])):
        for keep in (False, True):
            log_probs = _token_log_probs(
                model, params, reader.tokens, (jnp.int32(head[0]), jnp.int32(head[1])), keep
            )
            power = reader.power(_bits(log_probs)).delta_log_likelihood
            changes[f"{name} copying, {'patterns kept' if keep else 'all reacts'}"] = power - whole
    return changes


def _end(runs, arm: str, name: str) -> np.ndarray:
    return np.array([run[name][-1] for run in runs[arm]])


def claims(runs: dict[str, list[dict]]) -> list[Claim]:
    """Return what the paper's abstract says, tested on a reader whose memory is known."""
    found = []

    def test(text, values, source=PAPER, **bounds):
        if len(values):
            interval = t_interval(values)
            holds = decide(interval, **bounds)
            found.append(Claim(text, source, float(np.mean(values)), holds, interval=interval))

    plain = [runs[arm] for arm in (PLAIN, SMALL_BATCH) if arm in runs]
    if plain:
        test("PPP at its peak, over PPP at the end, nats a word",
             by_seed(plain, lambda run: fall(run["halves"])), above=0)  # fmt: skip
        if found[-1].holds:  # of noise that does not fall the largest value is anywhere
            test("log2 of tokens at the PPP peak over those at the transition (the peak comes first)",
                 by_seed(plain, lambda run: shift(run, run["ppp"]), only=copied), below=0)  # fmt: skip
    if PLAIN in runs and PENALISED in runs:
        null = runs[PENALISED][0]["null"][-1]
        test("copying score of the best head at the end, penalised, over the null's",
             _end(runs, PENALISED, "copying") / null, source="control", below=2)  # fmt: skip
        test("PPP at the end, copying penalised, minus plain",
             _end(runs, PENALISED, "ppp") - _end(runs, PLAIN, "ppp"), above=0)  # fmt: skip
        test("PPP at its peak, copying penalised, minus plain (the penalty costs before it helps)",
             [peak(a["halves"]) - peak(b["halves"])
              for a, b in zip(runs[PENALISED], runs[PLAIN], strict=True)],
             source="control", above=0)  # fmt: skip
    if ONE_LAYER in runs:
        test("one layer: copying score of the best head at the end, over the null's (no induction)",
             _end(runs, ONE_LAYER, "copying") / runs[ONE_LAYER][0]["null"][-1],
             source="control", below=2)  # fmt: skip
        test("one layer: PPP at its peak, over PPP at the end",
             [fall(run["halves"]) for run in runs[ONE_LAYER]], source="control", at_most=2e-4)  # fmt: skip
        if PLAIN in runs:
            test("PPP falls more in two layers than in one, nats a word",
                 [fall(a["halves"]) - fall(b["halves"])
                  for a, b in zip(runs[PLAIN], runs[ONE_LAYER], strict=True)],
                 source="control", above=0)  # fmt: skip
    for kind in ("all reacts", "patterns kept"):
        changes = by_seed(
            plain, lambda run, name=f"most copying, {kind}": run["ablated"][name], only=copied
        )
        test(f"PPP without the head that copies most, {kind}, minus the whole model's", changes, below=5e-4)
    return found


def metrics(runs: dict[str, list[dict]]) -> dict[str, float]:
    """Return means over seeds."""
    values = {}
    for arm, found in runs.items():
        for name in ("copying", "repeat_loss", "loss", "ppp"):
            values[f"{arm}/{name}"] = float(np.mean(_end(runs, arm, name)))
        values[f"{arm}/largest ppp"] = float(np.mean([max(run["ppp"]) for run in found]))
        values[f"{arm}/fall"] = float(np.mean([fall(run["halves"]) for run in found]))
        if all(map(copied, found)):
            values[f"{arm}/transition, tokens"] = float(
                np.mean([transition(run["copying"], run["tokens"]) for run in found])
            )
        for name in found[0]["ablated"]:
            values[f"{arm}/ppp change, {name}"] = float(np.mean([run["ablated"][name] for run in found]))
    return values


def summary(runs: dict[str, list[dict]]) -> str:
    """Return a table of the arms, with intervals over seeds."""
    head = ("arm", "best copying score at the end", "largest PPP", "PPP at the end",
            "fall, peak chosen on other sequences", "held-out loss")  # fmt: skip
    rows = [
        (arm, spread(_end(runs, arm, "copying")), spread([max(run["ppp"]) for run in found]),
         spread(_end(runs, arm, "ppp")), spread([fall(run["halves"]) for run in found]),
         spread(_end(runs, arm, "loss")))
        for arm, found in runs.items()
    ]  # fmt: skip
    return markdown_table(head, rows) + "\n\nPPP in nats a word; ± half of the 95 % interval over seeds."


def plot(runs: dict[str, list[dict]], out: str) -> None:
    """Plot copying, the loss of repeats and PPP over the tokens seen, a line a seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = {
        "copying": "copying score of the best head", "repeat_loss": "loss of repeated random tokens (nats)",
        "ppp": "predictive power for the reader (nats a word)",
    }  # fmt: skip
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    for axis, (name, label) in zip(axes, panels.items(), strict=True):
        for color, (arm, found) in zip(plt.cm.tab10.colors, runs.items(), strict=False):
            for run in found:
                axis.plot(run["tokens"], run[name], color=color, lw=0.8, alpha=0.4)
            by_step = np.mean([run[name] for run in found], axis=0)
            axis.plot(found[0]["tokens"], by_step, color=color, lw=2, label=arm)
        axis.set(xscale="log", xlabel="tokens seen", ylabel=label)
        axis.grid(alpha=0.2)
    axes[0].legend(frameon=False)
    write_figure(Path(out, "transition.png"), figure)
    plt.close(figure)
