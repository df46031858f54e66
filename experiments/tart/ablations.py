"""What TART's choices are worth, on the encoder's vectors: whitening, components, orders, imbalance."""

import numpy as np

from jaxllm.in_context import InContextClassifier

VARIANTS = {
    "as it is": {},
    "whitened": dict(shrinkage=0.0),  # the paper's
    "half shrunk": dict(shrinkage=0.5),
    "not whitened": dict(shrinkage=1.0),
    "one order": dict(permutations=1),
}
IMBALANCED = {  # four of five examples are of the first class; test items are balanced
    "as it is": {},
    "shares": dict(shares=(0.5, 0.5)),
    "calibrated": dict(calibrate=True),
    "calibrated, shares": dict(calibrate=True, shares=(0.5, 0.5)),
}


def ablate(study) -> dict[tuple, float]:
    """Return accuracy by (what, variant, task, seed), of binary tasks at the fewest shots.

    "imbalance" is at twice as many, of which four in five are of the first class; "loss" is the log-loss of
    balanced examples, as it is and calibrated.
    """
    config, found = study.config, {}
    features = study.reasoner.config.features
    shots = min(config.shots)
    for source in config.data:
        pool, test = study.vectors("encoder", source)
        texts = study.tasks[source]
        for seed in config.seeds:
            order = study.order(source, seed, shots)
            blocked = order[np.argsort(texts.labels[order], kind="stable")]
            for name, options in VARIANTS.items():
                accuracy = study.accuracy(source, pool, test, order, seed=seed, **options)
                found["choices", name, source, seed] = accuracy
            half = study.accuracy(source, pool, test, order, components=features // 2)
            found["choices", "half the components, twice", source, seed] = half
            one = study.accuracy(source, pool, test, blocked, permutations=1)
            found["choices", "one order, by class", source, seed] = one
            labels, more = texts.labels, 2 * shots
            by_class = [
                np.random.default_rng([seed, 5]).permutation(np.flatnonzero(labels == y)) for y in (0, 1)
            ]
            few = max(2, more // 5)
            uneven = np.concatenate([by_class[0][: more - few], by_class[1][:few]])
            uneven = np.random.default_rng([seed, 6]).permutation(uneven)
            for name, options in IMBALANCED.items():
                accuracy = study.accuracy(source, pool, test, uneven, **options)
                found["imbalance", name, source, seed] = accuracy
            for name, calibrate in (("as it is", False), ("calibrated", True)):
                classifier = InContextClassifier(
                    study.reasoner, pool[order], labels[order].tolist(), calibrate=calibrate
                )
                log_probs = classifier.log_probs(test)
                loss = -log_probs[np.arange(len(texts.gold)), texts.gold].mean()
                found["loss", name, source, seed] = float(loss)
    return found


def mean_of(ablations: dict[tuple, float], what: str, variant: str) -> float:
    """Return the mean over tasks and seeds."""
    return float(np.mean([value for key, value in ablations.items() if key[:2] == (what, variant)]))


def names_of(ablations: dict[tuple, float], what: str) -> list[str]:
    """Return the variants of one kind, in order."""
    return list(dict.fromkeys(key[1] for key in ablations if key[0] == what))
