"""The cells of the Manticore study: fine-tuned components and hybrids, searches, and pretrained pairs."""

import functools
import tempfile
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments.epochs import Arrays, alternate_halves, epochs
from experiments.manticore_models import (
    Part,
    joined,
    load_part,
    log_probs,
    loss_of,
    read_texts,
    small_pair,
    translated_table,
    windows,
)
from experiments.manticore_training import SEARCHES, Search, tune
from jaxllm import models
from jaxllm.adapt import TrainOnly
from jaxllm.data import load_tokenizer
from jaxllm.models import HybridConfig, LanguageModel, MambaConfig
from jaxllm.optim import search_mixture
from jaxllm.train import RunConfig, Task
from jaxllm.train import train as train_task


class Texts(NamedTuple):
    """What the parts are pretrained on, and the mix of both that they are tuned to."""

    vocab_size: int
    first: Arrays
    second: Arrays
    train: Arrays
    test: Arrays


def pretrain(config: LanguageModel, rows: Arrays, *, steps: int, batch: int, rate: float, seed: int) -> dict:
    """Return the parameters of a model trained from scratch on a text."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(1, steps // 20), steps, 0.1 * rate)
    params = models.init(config, jax.random.key(seed))
    return tune(config, params, epochs(rows, batch, seed), steps, rate, schedule=schedule)[0]


@functools.lru_cache(maxsize=2)
def two_corpora(sources: tuple[str, str], tokenizer: str, seq_len: int, rows: int, test: int) -> Texts:
    """Return two texts and their mix, cut into rows; what is tested on is no part of the rest."""
    texts = [read_texts(source) for source in sources]
    reader = load_tokenizer(tokenizer, documents=texts)
    own, tuned, tested = [], [], []
    for text in texts:
        ids = reader.encode(text[: 40 * seq_len * (3 * rows + test)])
        held = len(ids) // 4
        own.append(windows(ids[: 2 * held], seq_len, rows))
        tuned.append(windows(ids[2 * held : 3 * held], seq_len, rows // 2))
        tested.append(windows(ids[3 * held :], seq_len, test // 2))
    return Texts(reader.vocab_size, *own, joined(*tuned), joined(*tested))


class Pair:
    """Two small models trained here on different texts, and what becomes of them on the mix of both."""

    def __init__(self, config, seed: int):
        self.config, self.seed = config, seed
        self.texts = two_corpora(config.corpora, config.tokenizer, config.seq_len, config.rows, config.test)
        self.parts = small_pair(config.size, self.texts.vocab_size, config.seq_len)
        options = dict(steps=config.pretrain_steps, batch=config.batch, rate=config.pretrain_rate, seed=seed)
        own = zip(self.parts, (self.texts.first, self.texts.second), strict=True)
        self.params = [pretrain(part, rows, **options) for part, rows in own]

    def hybrid(
        self, blocks: int, projector: str = "linear", tables: str = "parts"
    ) -> tuple[HybridConfig, dict]:
        """Return a hybrid of the pretrained parts, not trained as one yet."""
        config = HybridConfig(parts=self.parts, blocks=blocks, projector=projector, tables=tables)
        return config, models.pretrained_hybrid(config, self.params, jax.random.key(self.seed))

    def component(self, part: int, times: int = 1) -> tuple[float, np.ndarray]:
        """Return (the loss, log-probabilities) of one part tuned alone, for so many times the steps."""
        config = self.parts[part]
        params, _ = self._tune(config, self.params[part], times)
        found = log_probs(config, params, self.texts.test)
        return -float(found.mean()), found

    def joint(self, config: HybridConfig, params: dict, alphas: Any = None) -> tuple[float, dict]:
        """Return (the loss, parameters) of a hybrid tuned with a frozen mixture."""
        if alphas is not None:
            params = models.with_mixture(params, alphas)
        params, _ = self._tune(config, params)
        return loss_of(config, params, self.texts.test), params

    def translate(self, config: HybridConfig, params: dict) -> dict:
        """Return a hybrid whose projectors and tables were trained, parts frozen: the paper's first stage."""
        batches, steps = self._batches(epochs), self.config.projector_steps
        return tune(config, params, batches, steps, 10 * self.config.rate, parts=0.0)[0]

    def search(self, config: HybridConfig, params: dict, how: Search) -> tuple[np.ndarray, list[dict]]:
        """Return (the mixture found, [N, K], and how it went); weights have as many steps in each way."""
        batches = alternate_halves if how.held_out else epochs
        params, curve = self._tune(config, params, 2 if how.alternate else 1, how, batches)
        return models.mixture(params), curve

    def _batches(self, order):
        return order(self.texts.train, self.config.batch, self.seed)

    def _tune(self, config, params, times=1, search=None, order=epochs):
        steps = times * self.config.steps
        return tune(
            config, params, self._batches(order), steps, self.config.rate, search=search, seed=self.seed
        )


def tuned_cell(config, seed: int) -> dict[str, Any]:
    """Return what one seed of the small pair says: losses by arm, mixtures by search, sweeps."""
    pair, losses, found, curves = Pair(config, seed), {}, {}, {}
    alone = [pair.component(part) for part in (0, 1)]
    losses |= {f"part {part} alone": loss for part, (loss, _) in enumerate(alone)}
    losses |= {f"part {part} alone, twice the steps": pair.component(part, 2)[0] for part in (0, 1)}
    losses["ensemble"] = -float(np.logaddexp(alone[0][1], alone[1][1]).mean() - np.log(2))
    draw = np.random.default_rng(seed)
    for blocks in config.blocks:
        model, params = pair.hybrid(blocks)
        params = pair.translate(model, params)
        name = lambda arm, blocks=blocks: f"N={blocks}, {arm}"
        losses[name("untuned uniform")] = loss_of(model, params, pair.texts.test)
        losses[name("uniform")] = pair.joint(model, params)[0]
        losses[name("random")] = pair.joint(model, params, draw.dirichlet((1.0, 1.0), blocks))[0]
        for search in config.searches:
            alphas, curve = pair.search(model, params, SEARCHES[search])
            found[name(search)], curves[name(search)] = alphas.tolist(), curve
            losses[name(search)], tuned = pair.joint(model, params, alphas)
            if search == config.searches[0]:
                hard = model.choose(alphas.argmax(axis=1))
                losses[name("rounded")] = loss_of(hard, tuned, pair.texts.test)
                losses[name("rounded, tuned")] = pair.joint(hard, params)[0]
    model, params = pair.hybrid(1)
    params = pair.translate(model, params)
    sweep = [pair.joint(model, params, [1 - a, a])[0] for a in config.sweep]
    name = f"N={config.blocks[0]}, uniform"
    model, params = pair.hybrid(config.blocks[0], tables="new")
    losses[f"{name}, new tables"] = pair.joint(model, pair.translate(model, params))[0]
    losses[f"{name}, projectors as drawn"] = pair.joint(*pair.hybrid(config.blocks[0]))[0]
    return {"losses": losses, "found": found, "curves": curves, "sweep": sweep}


def pretrained_cell(config, blocks: int) -> dict[str, Any]:
    """Return what becomes of a pretrained pair whose projectors, tables and mixture alone are trained."""
    parts, model, params, train, test = _pretrained(config, blocks)
    lead = parts[0]
    alone = {"part 0 alone": loss_of(lead.config, lead.params, test)}
    one_hot = model.choose((0,) * blocks)
    gap = np.abs(log_probs(one_hot, params, test) - log_probs(lead.config, lead.params, test)).max()
    alone["untuned uniform"] = loss_of(model, params, test)
    start = config.pretrained_start
    params = models.with_mixture(params, [start, *[(1 - start) / (len(parts) - 1)] * (len(parts) - 1)])
    alone["untuned, mostly part 0"] = loss_of(model, params, test)
    names = "projectors,tables,mixture" if "tables" in params else "projectors,mixture"
    view = TrainOnly(model, names)
    trained, frozen = view.begin(params, jax.random.key(0))

    def loss(params, batch, key):
        return models.loss(model, params, batch["tokens"], batch["targets"], key=key)

    task = Task(
        view.init, view.axes(), lambda: epochs(train, config.pretrained_batch, 0), loss, frozen=frozen,
        frozen_axes=view.frozen_axes(),
    )  # fmt: skip
    optimizer = search_mixture(optax.adam(config.projector_rate), optax.adam(0.02), view.axes())
    with tempfile.TemporaryDirectory(prefix="jaxllm-manticore-") as out:
        run = RunConfig(
            steps=config.pretrained_steps, out=out, save_every=config.pretrained_steps, keep_last=1,
            keep_best=0, progress=False,
        )  # fmt: skip
        done = train_task(task, run, optimizer=optimizer, views=(view,), start=trained)
    trained = done.params
    params = view.merge(trained, frozen)
    alone["tuned"] = loss_of(model, params, test)
    return {
        "losses": alone,
        "one_hot_gap": float(gap),
        "alphas": models.mixture(params).tolist(),
    }


def _pretrained(config, blocks):
    parts = [_part(config, source) for source in config.parts]
    lead = parts[0]
    rows = config.pretrained_rows
    ids = lead.tokenizer.encode(read_texts(config.corpora[1])[: 40 * config.pretrained_len * rows])
    both = windows(ids, config.pretrained_len, rows)
    train = {name: x[: 3 * rows // 4] for name, x in both.items()}
    test = {name: x[3 * rows // 4 :] for name, x in both.items()}
    fingerprints = {part.tokenizer.fingerprint for part in parts}
    shared = len(fingerprints) == 1 and len({part.config.vocab_size for part in parts}) == 1
    model = HybridConfig(
        parts=tuple(part.config for part in parts), blocks=blocks, projector="linear",
        tables="parts" if shared else "first",
    )  # fmt: skip
    params = models.pretrained_hybrid(model, [part.params for part in parts], jax.random.key(0))
    if not shared:
        tables = {str(n): translated_table(lead, part) for n, part in enumerate(parts) if n}
        params |= {"tables": jax.tree.map(jax.numpy.asarray, tables)}
    return parts, model, params, train, test


@functools.lru_cache(maxsize=2)
def _load(source: str) -> Part:
    return load_part(source)


@functools.lru_cache(maxsize=2)
def _part(config, source: str) -> Part:
    """Return a part: "mamba" is one trained here, of the first part's vocabulary, on the same tokens."""
    if source != "mamba":
        return _load(source)
    lead = _load(config.parts[0])
    rows = config.pretrained_rows
    ids = lead.tokenizer.encode(read_texts(config.corpora[1])[: 40 * config.pretrained_len * rows])
    own = windows(ids, config.pretrained_len, rows)
    own = {name: x[: 3 * rows // 4] for name, x in own.items()}
    model = MambaConfig(
        vocab_size=lead.config.vocab_size, num_layers=lead.config.num_layers // config.mamba_layers_divide,
        embed_dim=config.mamba_dim, state_dim=8,
    )  # fmt: skip
    params = pretrain(model, own, steps=config.mamba_steps, batch=config.pretrained_batch, rate=1e-3, seed=0)
    return Part(model, jax.tree.map(jax.numpy.asarray, params), lead.tokenizer)


def spaced_cell(config) -> dict[str, float]:
    """Return a pretrained model's loss a token on a text, and on its characters joined by blanks.

    So the release prepares PTB and the text of its projectors.
    """
    part = _load(config.parts[0])
    text = read_texts(config.corpora[1])[: 6 * config.pretrained_len * config.pretrained_rows]
    found = {}
    for name, version in (("plain", text), ("spaced", " ".join(text[: len(text) // 4]))):
        ids = part.tokenizer.encode(version)
        rows = windows(ids, config.pretrained_len, min(16, (len(ids) - 1) // config.pretrained_len))
        found[f"{name}/nats_per_token"] = loss_of(part.config, part.params, rows)
    return found
