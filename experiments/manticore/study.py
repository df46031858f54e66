"""The cells of the Manticore study: fine-tuned components and hybrids, searches, and pretrained pairs."""

import functools
import tempfile
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments.manticore.models import (
    Part,
    joined,
    load_part,
    log_probs,
    loss_of,
    read_texts,
    small_part,
    translated_table,
    wide_part,
    windows,
)
from experiments.manticore.training import tune
from experiments.shared.epochs import Arrays, epochs
from experiments.shared.mixture_searches import SEARCHES
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


_init = jax.jit(models.init, static_argnums=0)


def pretrain(config: LanguageModel, rows: Arrays, *, steps: int, batch: int, rate: float, seed: int) -> dict:
    """Return the parameters of a model trained from scratch on a text."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(1, steps // 20), steps, 0.1 * rate)
    params = _init(config, jax.random.key(seed))
    return tune(config, params, epochs(rows, batch, seed), steps, rate, schedule=schedule)[0]


_CHARACTERS = 8  # a token has fewer


@functools.lru_cache(maxsize=2)
def two_corpora(sources: tuple[str, str], tokenizer: str, seq_len: int, rows: int, test: int) -> Texts:
    """Return two texts and their mix, cut into rows; what is tested on is no part of the rest."""
    texts = [read_texts(source) for source in sources]
    reader = load_tokenizer(tokenizer, documents=texts)
    own, tuned, tested = [], [], []
    for text in texts:
        ids = reader.encode(text[: _CHARACTERS * seq_len * (2 * rows + test)])
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
        self.parts = tuple(
            small_part(part, config.size, self.texts.vocab_size, config.seq_len) for part in (0, 1)
        )
        own = zip(self.parts, (self.texts.first, self.texts.second), strict=True)
        self.params = [self._pretrain(part, rows, config.pretrain_steps) for part, rows in own]

    def _pretrain(self, model: LanguageModel, rows: Arrays, steps: int) -> dict:
        config = self.config
        return pretrain(
            model, rows, steps=steps, batch=config.batch, rate=config.pretrain_rate, seed=self.seed
        )

    def _hybrid(self, blocks: int, tables: str = "parts") -> HybridConfig:
        return HybridConfig(parts=self.parts, blocks=blocks, projector="linear", tables=tables)

    def hybrid(
        self, blocks: int, tables: str = "parts", projector_share: float = 1.0
    ) -> tuple[HybridConfig, dict]:
        """Return a hybrid of the pretrained parts after the paper's first stage, parts frozen.

        Args:
          projector_share: of the steps of the stage, which trains projectors and tables.
        """
        config = self._hybrid(blocks, tables)
        params = models.pretrained_hybrid(config, self.params, jax.random.key(self.seed))
        steps = round(projector_share * self.config.projector_steps)
        return config, self._tune(config, params, steps, rate=10 * self.config.rate, parts=0.0)[0]

    def alone(self, model: LanguageModel, params: dict, times: float = 1.0) -> tuple[float, np.ndarray]:
        """Return (the loss, log-probabilities) of a model that has seen as many batches as a hybrid has.

        Args:
          times: so many times as many.
        """
        steps = round(times * (self.config.projector_steps + self.config.steps))
        params = self._tune(model, params, steps)[0]
        found = log_probs(model, params, self.texts.test)
        return -float(found.mean()), found

    def equal_flops(self, part: int) -> float:
        """Return the loss of a part alone, tuned for as many FLOPs as a hybrid is; its search not counted."""
        cost = lambda model: model.flops_per_token(self.config.seq_len)
        times = cost(self._hybrid(self.config.blocks[0])) / cost(self.parts[part])
        return self.alone(self.parts[part], self.params[part], times)[0]

    def equal_parameters(self, part: int, times: int = 1) -> float:
        """Return the loss of a part as large as a hybrid, pretrained on what both parts were.

        Args:
          times: for so many times as long as a part: once costs as many FLOPs as both parts did, twice has
            seen as many tokens.
        """
        like = self._hybrid(self.config.blocks[0])
        model = wide_part(part, self.config.size, like, self.config.seq_len)
        both = joined(self.texts.first, self.texts.second)
        return self.alone(model, self._pretrain(model, both, times * self.config.pretrain_steps))[0]

    def joint(
        self, config: HybridConfig, params: dict, alphas: Any = None, more: int = 0
    ) -> tuple[float, dict]:
        """Return (the loss, parameters) of a hybrid tuned with a frozen mixture.

        Args:
          more: steps, for those that the first stage did not have.
        """
        if alphas is not None:
            params = models.with_mixture(params, alphas)
        params = self._tune(config, params, self.config.steps + more)[0]
        return loss_of(config, params, self.texts.test), params

    def search(self, config: HybridConfig, params: dict, name: str) -> tuple[np.ndarray, list[dict]]:
        """Return (the mixture found, [N, K], and how it went); weights have as many steps in each way."""
        how = SEARCHES[name]
        steps = self.config.steps * (2 if how.alternating else 1)
        params, curve = self._tune(config, params, steps, search=name, batches=how.batches)
        return models.mixture(params), curve

    def _tune(self, config, params, steps, *, search=None, batches=epochs, **options):
        drawn = batches(self.texts.train, self.config.batch, self.seed)
        options = dict(rate=self.config.rate) | options
        return tune(config, params, drawn, steps, search=search, seed=self.seed, **options)


def tuned_cell(config, seed: int) -> dict[str, Any]:
    """Return what one seed of the small pair says: losses by arm, mixtures by search, sweeps."""
    pair, losses, found, curves = Pair(config, seed), {}, {}, {}
    alone = [pair.alone(model, params) for model, params in zip(pair.parts, pair.params, strict=True)]
    losses |= {f"part {part} alone": loss for part, (loss, _) in enumerate(alone)}
    losses |= {f"part {part} alone, equal FLOPs": pair.equal_flops(part) for part in (0, 1)}
    better = int(np.argmin([loss for loss, _ in alone]))
    losses["better part, equal parameters"] = pair.equal_parameters(better)
    losses["better part, equal parameters and tokens"] = pair.equal_parameters(better, times=2)
    losses["ensemble"] = -float(np.logaddexp(alone[0][1], alone[1][1]).mean() - np.log(2))
    draw = np.random.default_rng(seed)
    for blocks in config.blocks:
        model, params = pair.hybrid(blocks)
        name = lambda arm, blocks=blocks: f"N={blocks}, {arm}"
        losses[name("untuned uniform")] = loss_of(model, params, pair.texts.test)
        losses[name("uniform")] = pair.joint(model, params)[0]
        losses[name("random")] = pair.joint(model, params, draw.dirichlet((1.0, 1.0), blocks))[0]
        for search in config.searches if blocks == config.blocks[0] else config.searches[:1]:
            alphas, curve = pair.search(model, params, search)
            found[name(search)], curves[name(search)] = alphas.tolist(), curve
            losses[name(search)], tuned = pair.joint(model, params, alphas)
            if search == config.searches[0]:
                hard = model.choose(alphas.argmax(axis=1))
                losses[name("rounded")] = loss_of(hard, tuned, pair.texts.test)
                losses[name("rounded, tuned")] = pair.joint(hard, params)[0]
    model, params = pair.hybrid(1)
    sweep = [pair.joint(model, params, [1 - a, a])[0] for a in config.sweep]
    blocks = config.blocks[0]
    losses[f"N={blocks}, uniform, new tables"] = pair.joint(*pair.hybrid(blocks, "new"))[0]
    whole = [losses[f"N={blocks}, {arm}"] for arm in ("untuned uniform", "uniform")]
    curve = [_projectors(pair, blocks, share) for share in config.projector_shares] + [(1.0, *whole)]
    return {"losses": losses, "found": found, "curves": curves, "sweep": sweep, "projectors": curve}


def _projectors(pair: Pair, blocks: int, share: float) -> tuple[float, float, float]:
    """Return (a share of the projectors' stage, the uniform hybrid's loss after it, and when it is tuned).

    Steps that are not of that stage are of tuning: each share has as many in all.
    """
    model, params = pair.hybrid(blocks, projector_share=share)
    whole = pair.config.projector_steps
    tuned = pair.joint(model, params, more=whole - round(share * whole))[0]
    return share, loss_of(model, params, pair.texts.test), tuned


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
