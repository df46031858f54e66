"""What is read off tuned models' opinions: errors, slopes, distances, insights and how many are false."""

from collections.abc import Sequence

import numpy as np

from experiments.opinion_mining.world import NEUTRAL, World
from jaxllm.measures import benjamini_hochberg, refit_test, sample_test
from jaxllm.score import polarisation

WAYS = "samples", "refits as independent", "bootstrapped refits"


def exact_interval(successes: int, total: int) -> tuple[float, float]:
    """Return Clopper and Pearson's 95 % interval of a share: Wilson's is too narrow of a handful.

    Examples:
      >>> low, high = exact_interval(4, 4)
      >>> round(low, 2), high
      (0.4, 1.0)
    """
    from scipy.special import betaincinv

    low = betaincinv(successes, total - successes + 1, 0.025) if successes else 0.0
    high = betaincinv(successes + 1, total - successes, 0.975) if successes < total else 1.0
    return float(low), float(high)


def parts(world: World) -> dict[str, slice]:
    """Return which members are seen, validation and held out."""
    return {"seen": slice(0, world.seen), "validation": slice(world.seen, world.seen + 1),
            "held_out": slice(world.seen + 1, world.members)}  # fmt: skip


def pooled(shares: np.ndarray, members: slice) -> np.ndarray:
    """Return shares of polarities by class, [R, C, 3]: templates and members weigh the same."""
    return shares[:, :, :, members].mean(axis=(1, 3))


def against_truth(world: World, shares: np.ndarray, rates: Sequence[float]) -> dict[str, list[float]]:
    """Return, a value a replica: MAE, slope and Jensen-Shannon distance, seen and held out."""
    rates, found = np.asarray(rates), {}
    truth_C3 = np.stack(
        [(1 - rates) * (1 - NEUTRAL), np.full(len(rates), NEUTRAL), rates * (1 - NEUTRAL)], axis=1
    )
    for name, members in parts(world).items():
        q_RC3 = pooled(shares, members)
        rho_RC = polarisation(q_RC3[..., 2], q_RC3[..., 0])
        found[f"{name}/mae"] = np.abs(rho_RC - rates).mean(axis=1).tolist()
        found[f"{name}/slope"] = [float(np.polyfit(rates, row, 1)[0]) for row in rho_RC]
        normal = q_RC3 / q_RC3.sum(axis=-1, keepdims=True)
        found[f"{name}/js"] = jensen_shannon(normal, truth_C3).mean(axis=1).tolist()
        found[f"{name}/no_opinion"] = (1 - q_RC3.sum(axis=-1)).mean(axis=1).tolist()
        found[f"{name}/rho"] = rho_RC.mean(axis=0).tolist()
    return found


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return the distance of distributions over the last axis, base 2: 0 to 1.

    Examples:
      >>> jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0])).round(4)
      np.float64(1.0)
    """
    p, q = np.broadcast_arrays(np.asarray(p, np.float64), np.asarray(q, np.float64))
    middle = (p + q) / 2

    def kl(a):
        return np.where(a > 0, a * np.log2(np.where(a > 0, a, 1) / np.where(middle > 0, middle, 1)), 0).sum(
            axis=-1
        )

    return np.sqrt(np.maximum((kl(p) + kl(q)) / 2, 0))


def decoded(log_probs: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    """Return the distribution [..., V] that truncated sampling draws from; temperature 0 is greedy."""
    if temperature == 0:
        return (log_probs == log_probs.max(axis=-1, keepdims=True)).astype(float)
    p = np.exp(log_probs / temperature - (log_probs / temperature).max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    order = np.argsort(-p, axis=-1)
    ordered = np.take_along_axis(p, order, axis=-1)
    kept = np.cumsum(ordered, axis=-1) - ordered < top_p
    p = np.take_along_axis(np.where(kept, ordered, 0), np.argsort(order, axis=-1), axis=-1)
    return p / p.sum(axis=-1, keepdims=True)


def insights(
    shares_A: np.ndarray, shares_B: np.ndarray, members: slice, samples: int, draw: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return q-values of each class by each way of testing: does population B speak otherwise than A?

    Tests are of classes and templates, all corrected together; a class has the least of its templates'
    q-values. A sample's polarity is drawn from the exact read-out, which is what generation draws from.

    Args:
      shares_A: of R models of a population, [R, templates, C, members, 3].
      shares_B: of the other.
      members: whose shares are pooled.
      samples: drawn from each model, template and member.
      draw: the source of chance.
    """
    R, P, C = shares_A.shape[:3]
    rho, counts = [], []
    for shares in (shares_A, shares_B):
        q = shares[:, :, :, members].mean(axis=3)
        rho.append(polarisation(q[..., 2], q[..., 0]))
        rest = np.maximum(0, 1 - shares[:, :, :, members].sum(axis=-1, keepdims=True))
        four = np.concatenate([shares[:, :, :, members], rest], axis=-1)
        drawn = draw.multinomial(samples, four / four.sum(axis=-1, keepdims=True))
        counts.append(drawn.sum(axis=(0, 3)))  # [P, C, 4]
    p = {way: np.ones((P, C)) for way in WAYS}
    for t, c in np.ndindex(P, C):
        polar = [(int(n[t, c, 2]), int(n[t, c, 2] + n[t, c, 0])) for n in counts]
        if min(total for _, total in polar):
            p["samples"][t, c] = sample_test(*zip(*polar, strict=True)).p_value
        one, other = rho[0][:, t, c], rho[1][:, t, c]
        p["refits as independent"][t, c] = refit_test(one, other, bootstrap=False).p_value
        p["bootstrapped refits"][t, c] = refit_test(one, other).p_value
    return {way: benjamini_hochberg(x.ravel()).reshape(P, C).min(axis=0) for way, x in p.items()}


def resample(rows: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Return a bootstrap corpus: as many sentences, drawn with replacement."""
    return rows[draw.integers(len(rows), size=len(rows))]


def counted_rho(notes: np.ndarray, classes: int, members: int) -> np.ndarray:
    """Return positive / polar of annotated sentences by target, [C, members]; 0.5 where there is none."""
    found = np.zeros((2, classes, members))
    for side, polarity in enumerate((0, 2)):
        mine = notes[notes[:, 2] == polarity]
        np.add.at(found[side], (mine[:, 0], mine[:, 1]), 1)
    total = found.sum(axis=0)
    return np.where(total > 0, found[1] / np.maximum(total, 1), 0.5)
