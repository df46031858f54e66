"""A classifier that needs no training: labelled vectors in a module's cache, read once for any test items.

Two classes are one problem; more are one against the rest, each. What a test item gets depends on the
labelled vectors and on itself alone: it is asked of the cache by itself, with no label to hide.

Suffixes: K labelled vectors, N test items, C classes, D a vector's width, F features; R contexts.
"""

import functools
from collections.abc import Hashable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm import models
from jaxllm.errors import UserError, brief
from jaxllm.in_context import reasoner as module
from jaxllm.in_context.platt import fit_platt
from jaxllm.in_context.reduction import check_vectors, fit_reduction
from jaxllm.in_context.saved import Reasoner
from jaxllm.score import Prior, divide_by_prior

_ROWS = 64  # test items of a call; fewer are padded to it: one program, and the same bits whoever is beside
_LEAST_PAIRS = 32
_FOLDS = 8


class InContextClassifier:
    """Labelled vectors that a module has read.

    Attributes:
      classes: the labels, in the order of the scores.

    Examples:
      >>> config = module.ReasonerConfig(features=2, max_pairs=8, num_layers=1, embed_dim=8, num_heads=2)
      >>> reasoner = Reasoner(config, module.init(config, jax.random.key(0)))
      >>> vectors = np.random.default_rng(0).normal(size=(6, 5))
      >>> classifier = InContextClassifier(reasoner, vectors, ["spam", "ham"] * 3)
      >>> classifier.classes, classifier.log_probs(vectors[:4]).shape
      (('ham', 'spam'), (4, 2))
    """

    def __init__(
        self,
        reasoner: Reasoner,
        vectors_KD: np.ndarray,
        labels: Sequence[Hashable],
        *,
        components: int | None = None,
        shrinkage: float = 0.1,
        permutations: int = 4,
        calibrate: bool = False,
        shares: Sequence[float] | None = None,
        seed: int = 0,
    ):
        """Read the labelled vectors.

        Args:
          reasoner: the module.
          vectors_KD: one a labelled example.
          labels: theirs; of two classes or more.
          components: principal components that vectors are reduced to, repeated to fill the module's
            features where they divide them; None: as many as features; 0: vectors are features already.
          shrinkage: of the whitening, see `fit_reduction`.
          permutations: orders of the examples, whose log-odds are averaged; the first is theirs.
          calibrate: fit a slope and a shift of the log-odds to labelled examples that were held out.
          shares: of each class among the test items, in the order of `classes`; the log-odds are shifted from
            the shares among the labelled examples to these. None: leave them.
          seed: of the orders.

        Raises:
          UserError: labels of one class, more pairs than the module was trained on, fewer than its components
            need, more components than its features, vectors that are no numbers.
        """
        vectors_KD = check_vectors(vectors_KD)
        K, features = len(vectors_KD), reasoner.config.features
        if len(labels) != K:
            raise UserError(f"there are {K} vectors and {len(labels)} labels; give one label a vector")
        self.classes = tuple(sorted(set(labels), key=lambda label: (str(type(label)), label)))
        if len(self.classes) < 2:
            named = brief(list(self.classes))
            raise UserError(f"{K} labels name {named}; give examples of two classes or more")
        module.check_pairs(reasoner.config, K)
        if permutations < 1:
            raise UserError(f"permutations is {permutations}; give 1, the order as it is, or more")
        components = features if components is None else components
        if not 0 <= components <= features:
            raise UserError(f"components is {components}; give 0 to the module's {features} features")
        self._reasoner, self._permutations, self._seed = reasoner, permutations, seed
        self._reduce = None if components == 0 else fit_reduction(vectors_KD, components, shrinkage=shrinkage)
        self._repeats = max(1, features // components) if components else 1
        x_KF = self._features(vectors_KD)
        index_K = np.array([self.classes.index(label) for label in labels])
        own = range(1, 2) if len(self.classes) == 2 else range(len(self.classes))
        y_CK = np.array([index_K == label for label in own], np.float32)
        self._prior = None if shares is None else _prior(index_K, shares, len(self.classes))
        self._shares = shares
        self._slopes = _calibration(reasoner, x_KF, y_CK, permutations, seed) if calibrate else None
        self._contexts = _Contexts(reasoner, x_KF, y_CK, permutations, seed)

    def log_odds(self, vectors_ND: np.ndarray) -> np.ndarray:
        """Return the log-odds of the second class against the first, [N, 1], or of each against the rest."""
        z_NC = self._contexts.log_odds(self._features(vectors_ND))
        if self._slopes is not None:
            slope_C, shift_C = self._slopes
            z_NC = z_NC * slope_C + shift_C
        return z_NC

    def log_probs(self, vectors_ND: np.ndarray) -> np.ndarray:
        """Return log p of each class in `classes`, float64 [N, C].

        Raises:
          UserError: vectors of another width, or not finite.
        """
        z_NC = self.log_odds(vectors_ND)
        if len(self.classes) == 2:
            z_NC = np.concatenate([-z_NC, z_NC], axis=1)
        log_probs_NC = -np.logaddexp(0, -z_NC)
        log_probs_NC -= np.logaddexp.reduce(log_probs_NC, axis=1, keepdims=True)
        if self._prior is None or not len(log_probs_NC):
            return log_probs_NC
        return divide_by_prior(log_probs_NC, self._prior, self._shares)

    def predict(self, vectors_ND: np.ndarray) -> list[Hashable]:
        """Return the likeliest class of each vector."""
        return [self.classes[label] for label in self.log_probs(vectors_ND).argmax(axis=1)]

    def _features(self, vectors_ND):
        features = self._reasoner.config.features
        if self._reduce is None:
            x_NF = check_vectors(vectors_ND).astype(np.float32)
            if x_NF.shape[1] > features:
                raise UserError(
                    f"vectors have {x_NF.shape[1]} numbers and the module {features} features; leave "
                    "components out, so that they are reduced"
                )
        else:
            x_NF = np.tile(self._reduce(vectors_ND), (1, self._repeats))
        return np.pad(x_NF, ((0, 0), (0, features - x_NF.shape[1])))  # as in training's first stages


class _Contexts:
    """Labelled features in the cache, one context for each problem and order."""

    def __init__(self, reasoner: Reasoner, x_KF, y_CK, permutations: int, seed: int):
        config, K = reasoner.config, x_KF.shape[0]
        draw = np.random.default_rng(seed)
        orders = [np.arange(K), *(draw.permutation(K) for _ in range(permutations - 1))]
        self._reasoner, self._shape = reasoner, (len(y_CK), permutations)
        x_RKF = np.tile(np.stack([x_KF[order] for order in orders]), (len(y_CK), 1, 1))
        y_RK = np.stack([y_K[order] for y_K in y_CK for order in orders])
        padded = min(max(_LEAST_PAIRS, 1 << (K - 1).bit_length()), config.max_pairs)
        extra = padded - K  # on the left, and seen by nobody
        x_RKF = np.pad(x_RKF, ((0, 0), (extra, 0), (0, 0)))
        y_RK = np.pad(y_RK, ((0, 0), (extra, 0)))
        mask_RT = np.broadcast_to(np.arange(2 * padded) >= 2 * extra, (len(x_RKF), 2 * padded))
        self._cache = _read(config, reasoner.params, x_RKF, y_RK, mask_RT)

    def log_odds(self, x_NF: np.ndarray) -> np.ndarray:
        """Return the mean over the orders of log p(1) - log p(0): float64 [N, problems]."""
        z_NC = np.zeros((len(x_NF), self._shape[0]))
        for begin in range(0, len(x_NF), _ROWS):
            some_nF = x_NF[begin : begin + _ROWS]
            padded = np.pad(some_nF, ((0, _ROWS - len(some_nF)), (0, 0)))
            z_RN = np.asarray(_ask(*self._reasoner, self._cache, padded), np.float64)
            z_CPN = z_RN.reshape(*self._shape, _ROWS)[..., : len(some_nF)]
            z_NC[begin : begin + _ROWS] = z_CPN.mean(axis=1).T
        return z_NC


def _calibration(reasoner, x_KF, y_CK, permutations, seed) -> tuple[np.ndarray, np.ndarray]:
    """Return a slope and a shift for each problem, from folds of the labelled examples."""
    K = len(x_KF)
    fold_K = np.random.default_rng([seed, 1]).permutation(np.arange(K) % min(_FOLDS, K))
    z_CK = np.zeros(y_CK.shape)
    for fold in range(fold_K.max() + 1):
        held = fold_K == fold
        kept = _Contexts(reasoner, x_KF[~held], y_CK[:, ~held], permutations, seed)
        z_CK[:, held] = kept.log_odds(x_KF[held]).T
    slopes = [fit_platt(z_K, y_K) for z_K, y_K in zip(z_CK, y_CK, strict=True)]
    return tuple(np.array(one) for one in zip(*slopes, strict=True))


def _prior(index_K, shares, classes: int) -> Prior:
    if len(shares) != classes:
        raise UserError(f"shares are {brief(shares)}, of {len(shares)} classes; the labels have {classes}")
    log_shares_C = np.log(np.bincount(index_K, minlength=classes) / len(index_K))
    return Prior(log_shares_C, np.zeros(classes), len(index_K))


@functools.partial(jax.jit, static_argnames="config")
def _read(config, params, x_RKF, y_RK, mask_RT):
    decoder, weights = config.decoder, params["decoder"]
    tokens_RTD = module.pair_tokens(config, params, x_RKF, y_RK)
    return models.prefill(decoder, weights, tokens_RTD, mask_RT, slots=mask_RT.shape[1])[1]


@functools.partial(jax.jit, static_argnames="config")
def _ask(config, params, cache, x_NF):
    """Return the logits of test items after each context, [R, N]; no test item sees another."""
    decoder, weights = config.decoder, params["decoder"]
    R, N = models.cache_rows(cache), len(x_NF)
    forked = models.fork_cache(cache, np.repeat(np.arange(R), N), 1)
    tokens_ND = module.query_tokens(config, params, x_NF)
    hidden_M1D, _ = models.decode(decoder, weights, jnp.tile(tokens_ND, (R, 1, 1)), forked)
    return models.logits(decoder, weights, hidden_M1D[:, 0])[:, 0].reshape(R, N)
