"""What a generated marked text is worth to a tagger: terms of a reward (`jaxllm.reward.Reward`)."""

from collections.abc import Sequence
from functools import partial

import jax
import numpy as np

from jaxllm import models
from jaxllm.data.labelled import padded_batch, padded_length
from jaxllm.data.word_windows import cut_words, encode_windows
from jaxllm.errors import UserError
from jaxllm.punctuate.marks import NONE, plain
from jaxllm.punctuate.training import Document
from jaxllm.reward import agreement, head_gradients
from jaxllm.text import Labeller

_ROWS = 32  # read at once
_WORST = -5.0  # of a sample without words, in nats


class TaggerReward:
    """Terms of samples, each (words, labels), by a tagger that stays as it is.

    Args:
      labeller: the tagger.
      dev: marked text of the domain, held out from training and from every test.
      ceiling: of `soundness`, in nats a word: text that is trivially certain wins no more.

    Raises:
      UserError: dev without words.
    """

    def __init__(self, labeller: Labeller, dev: Sequence[Document], *, ceiling: float = -0.1):
        self._labeller, self._ceiling = labeller, ceiling
        self._params = jax.jit(models.layers_apart)(labeller.params)
        self._known: tuple = (None, None)
        dev = [one for one in dev if len(one[0])]
        if not dev:
            raise UserError("dev holds no words; give marked text of the domain")
        self._dev = [self._read(one) for one in self._windows(dev)]
        counts = np.array([one[2].sum() for one in self._dev])
        self._wanted_DC = np.average([one[0] for one in self._dev], axis=0, weights=counts)

    def utility(self, samples: Sequence[Document]) -> np.ndarray:
        """Return the cosine of each sample's gradient by the head with that of dev, [B]: r_util."""
        return agreement(np.stack([one[0] for one in self._of(samples)]), self._wanted_DC)

    def soundness(self, samples: Sequence[Document]) -> np.ndarray:
        """Return the mean log-probability of each sample's own labels, at most the ceiling, [B]: r_lab."""
        means = [one[1] for one in self._of(samples)]
        return np.minimum(means, self._ceiling)

    def head_gain(self, samples: Sequence[Document], step: float = 1.0) -> float:
        """Return dev's micro-F1 after one step of the head on the samples, minus before: r_delta."""
        mean_DC = np.mean([one[0] for one in self._of(samples)], axis=0)
        counts = [np.zeros(3), np.zeros(3)]
        for _, _, mask_T, hidden_TD, logits_TC, labels_T in self._dev:
            moved = logits_TC - step * (np.append(hidden_TD, np.ones((len(hidden_TD), 1)), axis=1) @ mean_DC)
            for into, logits in zip(counts, (logits_TC, moved), strict=True):
                said, own = logits.argmax(axis=1)[mask_T], labels_T[mask_T]
                into += [np.sum((said == own) & (own > 0)), np.sum(said > 0), np.sum(own > 0)]
        before, after = (2 * right / max(1.0, said + own) for right, said, own in counts)
        return float(after - before)

    def _windows(self, documents):
        """Return documents cut into what the tagger reads at once."""
        found = []
        longest = min(self._labeller.longest, 128)
        for words, labels in documents:
            read = [plain(word) for word in words]
            for window in cut_words(self._labeller.tokenizer, read, longest):
                part = slice(window.begin, window.end)
                found.append((words[part], labels[part]))
        return found

    def _of(self, samples):
        """Return (gradient, mean log-probability, ...) of each sample; of the same batch once."""
        key = [(tuple(words), tuple(labels)) for words, labels in samples]
        if self._known[0] != key:
            found = [None] * len(samples)
            full = [place for place, (words, _) in enumerate(samples) if len(words)]
            for begin in range(0, len(full), _ROWS):
                places = full[begin : begin + _ROWS]
                for place, one in zip(places, self._rows([samples[i] for i in places]), strict=True):
                    found[place] = one
            nothing = np.zeros_like(self._wanted_DC), _WORST
            self._known = key, [nothing if one is None else one for one in found]
        return self._known[1]

    def _read(self, sample):
        return self._rows([sample])[0]

    def _rows(self, samples):
        labeller, known = self._labeller, {name: i for i, name in enumerate(self._labeller.config.labels)}
        encoded, ids = [], []
        for words, labels in samples:
            read = [plain(word) for word in words]
            longest = labeller.longest
            encoded.append(encode_windows(labeller.tokenizer, read, longest=longest, marked="last")[0][1])
            ids.append([known.get(label, known[NONE]) for label in labels])
        length = padded_length(max(len(one.ids_N) for one in encoded), labeller.longest)
        rows = _ROWS if len(samples) > 1 else 1
        batch = padded_batch(labeller.tokenizer, encoded, ids, rows=rows, length=length)
        found = jax.device_get(_measure(labeller.config, self._params, batch))
        return [tuple(x[row] for x in found) for row in range(len(samples))]


@partial(jax.jit, static_argnums=0)
def _measure(config, params, batch):
    """Return gradients by the head [B, D + 1, C], mean log-probabilities [B], and what they are made of."""
    options = {"token_types": batch["token_types"]} if config.num_token_types else {}
    hidden_BTD = models.trunk(config, params, batch["tokens"], segment_ids=batch["mask"], **options)
    logits_BTC = models.logits(config, params, hidden_BTD)
    mask_BT = batch["targets"] >= 0
    labels_BT = jax.numpy.where(mask_BT, batch["targets"], 0)
    log_probs_BTC = jax.nn.log_softmax(logits_BTC, axis=-1)
    own_BT = jax.numpy.take_along_axis(log_probs_BTC, labels_BT[..., None], axis=-1)[..., 0]
    counts_B = jax.numpy.maximum(mask_BT.sum(axis=1), 1)
    means_B = (own_BT * mask_BT).sum(axis=1) / counts_B
    gradients_BDC = head_gradients(hidden_BTD, logits_BTC, labels_BT, mask_BT.astype(jax.numpy.float32))
    return gradients_BDC, means_B, mask_BT, hidden_BTD, logits_BTC, labels_BT
