"""What TART is put beside: linear probes of the same frozen vectors, and fine-tuning of the model."""

import os
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.few_shot_tasks import Dataset, Row
from experiments.tart.oracle import fit_logistic
from jaxllm import models
from jaxllm.adapt import Lora, LoraConfig
from jaxllm.data import Labelled
from jaxllm.in_context import fit_reduction
from jaxllm.optim import OptimConfig
from jaxllm.score.few_shot import label_tokens
from jaxllm.text import LabelConfig, train_labels
from jaxllm.train import RunConfig, Task, train

RIDGES = (100.0, 10.0, 1.0, 0.1)  # of equally good ones the first is taken
_FOLDS = 4


def probe(
    vectors_KD: np.ndarray, labels_K: np.ndarray, test_ND: np.ndarray, components: int | None = None
) -> np.ndarray:
    """Return log-odds of each class against the rest by penalised logistic regression, [N, C].

    Its ridge is the best of `RIDGES` over folds of the examples. Vectors are reduced to whitened components;
    or, of all dimensions, centred and scaled by one number, in the span of the examples, which decides all.

    Args:
      vectors_KD: of labelled examples.
      labels_K: their classes, numbers from 0.
      test_ND: of test items.
      components: None: all dimensions.
    """
    if components is None:
        mean_D = vectors_KD.mean(axis=0, dtype=np.float64)
        _, sizes, rows_RD = np.linalg.svd(vectors_KD - mean_D, full_matrices=False)
        scale = np.sqrt(len(vectors_KD) / np.sum(sizes**2))  # vectors of length 1 on average
        x_KF, x_NF = ((x - mean_D) @ rows_RD.T * scale for x in (vectors_KD, test_ND))
    else:
        reduction = fit_reduction(vectors_KD, components, shrinkage=0.1)
        x_KF, x_NF = reduction(vectors_KD), reduction(test_ND)
    y_CK = (labels_K == np.arange(labels_K.max() + 1)[:, None]).astype(float)
    fold_K = np.arange(len(x_KF)) % _FOLDS

    def score(ridge):
        right = 0
        for fold in range(_FOLDS):
            kept = fold_K != fold
            z = _log_odds(x_KF[kept], y_CK[:, kept], x_KF[~kept], ridge)
            right += np.sum(z.argmax(axis=1) == labels_K[~kept])
        return right

    return _log_odds(x_KF, y_CK, x_NF, max(RIDGES, key=score))


def _log_odds(x_KF, y_CK, x_NF, ridge) -> np.ndarray:
    with_one = lambda x: np.concatenate([x, np.ones((len(x), 1))], axis=1)
    # Ten steps of Newton's method: folds choose among ridges, not among digits.
    x_CKF = np.broadcast_to(with_one(x_KF), (len(y_CK), len(x_KF), x_KF.shape[1] + 1))
    w_CF = fit_logistic(x_CKF, y_CK, ridge, steps=10)
    return with_one(x_NF) @ w_CF.T


def tune_encoder(
    encoder, examples: list[Row], test: list[Row], *, steps: int, longest: int, seed: int, out: Path
) -> np.ndarray:
    """Return log-probabilities [N, C] of an encoder fine-tuned by LoRA, with its head, on a few examples."""
    names = [str(label) for label in range(1 + max(label for _, label in examples))]
    labelled = [Labelled([_text(values) for values, _ in rows], [names[label] for _, label in rows])
                for rows in (examples, test)]  # fmt: skip
    optim = OptimConfig(learning_rate=1e-3, warmup_steps=max(1, steps // 10), weight_decay=0.01, beta2=0.999)
    run = LabelConfig(
        steps=steps, batch_size=16, longest=longest, lora=LoraConfig(rank=8, targets="all"), optim=optim,
        labels=tuple(names), eval_every=steps, save_every=steps, keep_best=0, keep_last=1, seed=seed,
        progress=False, out=str(out),
    )  # fmt: skip
    labeller = train_labels(run, *labelled, start=tuple(encoder), devices=jax.devices()[:1]).labeller
    return np.stack(labeller.log_probs(labelled[1].texts))


def _text(values) -> str | tuple[str, str]:
    return values[0] if len(values) == 1 else tuple(values)


def tune_decoder(
    model,
    data: Dataset,
    examples: list[Row],
    test: list[Row],
    *,
    steps: int,
    batch: int,
    seed: int,
    out: Path,
) -> np.ndarray:
    """Return log-probabilities [N, Y] of a decoder fine-tuned by LoRA to write the labels' words.

    It reads a test item's fields without any example; the loss is of the labels' first tokens alone, which
    must differ after what all labels share.
    """
    config, params, tokenizer = model
    labels = label_tokens(tokenizer, data.task)
    shared = os.path.commonprefix(labels)  # a beginning that all labels have tells none from another
    firsts_Y = np.array([ids[len(shared)] for ids in labels])
    encoded = [
        [*tokenizer.encode(data.task.query(values)).tolist(), *shared] for values, _ in [*examples, *test]
    ]
    length = -(-max(map(len, encoded)) // 16) * 16
    tokens_MT = np.zeros((len(encoded), length), np.int32)
    last_M = np.array([len(ids) - 1 for ids in encoded])
    for row, ids in enumerate(encoded):
        tokens_MT[row, : len(ids)] = ids
    gold_K = np.array([label for _, label in examples])
    lora = Lora(config, LoraConfig(rank=8, targets="query,value,mlp_in,mlp_out"))
    start, frozen = lora.begin(params, jax.random.key(seed))
    frozen = jax.jit(models.layers_apart)(frozen)  # once: a scan would copy each layer at every step

    def label_logits(seen, tokens_BT, last_B):
        hidden_BTD = models.trunk(config, seen, tokens_BT)
        hidden_BD = hidden_BTD[jnp.arange(len(last_B), dtype=jnp.int32), last_B]
        return models.logits(config, seen, hidden_BD)[:, firsts_Y]

    def loss(seen, batch, key):
        logits_BY = label_logits(seen, batch["tokens"], batch["last"])
        losses_B = optax.softmax_cross_entropy_with_integer_labels(logits_BY, batch["gold"])
        return losses_B.mean(), {"token_count": losses_B.size}

    def batches() -> Iterator[dict[str, np.ndarray]]:
        draw, rows = np.random.default_rng(seed), min(batch, len(examples))
        while True:
            order = draw.permutation(len(examples))
            for at in range(0, len(order) - rows + 1, rows):
                some = order[at : at + rows]
                yield {"tokens": tokens_MT[some], "last": last_M[some].astype(np.int32), "gold": gold_K[some]}

    task = Task(
        lora.init, lora.axes(), batches, loss, frozen=frozen, frozen_axes=lora.frozen_axes(apart=True)
    )
    run = RunConfig(
        steps=steps, save_every=steps, keep_best=0, keep_last=1, seed=seed, progress=False, out=str(out)
    )
    alone = dict(devices=jax.devices()[:1])  # examples are too few to be split
    trained = train(task, run, optimizer=optax.adam(1e-3), views=(lora,), start=start, **alone)
    predict = jax.jit(lambda tuned, frozen, *inputs: label_logits(lora(tuned, frozen, None), *inputs))
    rows, found = 16, []
    for at in range(len(examples), len(encoded), rows):
        some = np.arange(at, at + rows).clip(max=len(encoded) - 1)
        z = predict(trained.params, frozen, tokens_MT[some], last_M[some])
        found.append(np.asarray(jax.nn.log_softmax(z))[: len(encoded) - at])
    return np.concatenate(found)
