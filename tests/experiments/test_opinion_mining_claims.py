"""The claims of opinion mining on made-up figures, and the one that each contradiction turns around."""

import copy
from types import SimpleNamespace

import pytest

from experiments.opinion_mining import claims
from jaxllm.report import Claim

CONFIG = SimpleNamespace(null_pairs=100, level=0.1, pairs=50, differing=2)
SCORERS = "authors", "lexicon", "lexicon, continuation", "classifier"


def around(value):
    return [value - 0.001, value, value + 0.001]


def stopped(seen, held_out):
    figures = {"seen/mae": seen, "held_out/mae": held_out, "seen/slope": 1.0, "held_out/slope": 1.0}
    return {"stopped": {name: around(value) for name, value in figures.items()}}


def of_targets(rare, unseen):
    """Return errors of five targets a seed: of those that no claim is of, the generator's would be worse."""
    return [[0.0, rare + x, 0.0, 0.0, unseen + x] for x in around(0)]


def real():
    """Return 20 classes counted often, which lean as generated ones do, and 20 rarely, which do not."""
    rows = [{"h": 0.3}] * 40
    counted = [{"h": h, "counts": [(n, n), (50, 90)]} for h, n in ((0.2, 10), (-0.2, 9)) for _ in range(20)]
    halves = {"rows": [{}] * 100, "reported": {"bootstrapped refits": 2, "samples": 50}}
    return {"populations": {"rows": rows, "counted": {"rows": counted}}, "halves": halves}


FOUND = {
    "learning": {"pretrained": stopped(0.05, 0.05), "scratch": stopped(0.05, 0.4),
                 "adapter": stopped(0.05, 0.2)},
    "decoding": {"1, 1": {"seen/slope": around(1.0)}} | {
        setting: {"seen/slope": around(1.2)} for setting in ("0.7, 1", "0.5, 1", "1, 0.8", "0, 1")
    },
    "counting": {"errors": {"counting": of_targets(0.3, 0.5), "counting by class": of_targets(0, 0.3),
                            "generator": [[0.9, 0.1, 0.9, 0.9, 0.1]] * 3}},
    "scorer_error": {"raw": around(0.2), "corrected": around(0.05)},
    "null_pairs": {"seen/bootstrapped refits/any_false": 3, "seen/samples/any_false": 50,
                   "seen/refits as independent/any_false": 50},
    "pairs": {"seen/bootstrapped refits/recall": 0.8},
    "communitylm": {scorer: {"accuracy": [[0.1, 0.1, 0.1, x] for x in around(0.9)],
                             "correlation/targets": 0.9} for scorer in SCORERS},
    "reviews": real(), "addresses": real(),
}  # fmt: skip


def judged(change=None, value=None) -> list[Claim]:
    """Return the claims on the figures above, one of them, by its path, changed."""
    found = copy.deepcopy(FOUND)
    if change:
        *path, last = change
        at = found
        for key in path:
            at = at[key]
        at[last] = value
    return claims.judge(CONFIG, found)


def test_claims_hold_on_figures_as_the_paper_would_have_them():
    found = judged()
    assert len(found) == 8 + 4 + 4 + 4 + 2 * 4 + 2 * 3 and all(claim.holds for claim in found)
    measured = {claim.claim: claim.measured for claim in found}
    for start, value in (
        ("opinions are learnt", 0.05), ("without pretraining the error", 0.35), ("greedy decoding", 0.2),
        ("of unseen targets the generator's", 0.4), ("of the rarest", 0.2), ("of unseen targets it", 0.2),
        ("a confusion matrix", 0.15), ("of pairs without any difference at most", 0.03),
        ("reviews: generated opinions lean", 1), ("addresses: of random halves' classes more", 0.5),
    ):  # fmt: skip
        [one] = [x for text, x in measured.items() if text.startswith(start)]
        assert one == pytest.approx(value)
    [*_, correlated] = [claim for claim in found if "correlate with" in claim.claim]
    assert correlated.interval == pytest.approx((0.87285, 0.92160), abs=1e-4)  # Fisher's, of 240 targets


LEARNT = [
    ("pretrained", "seen/mae", 0.2, "opinions are learnt"),
    ("pretrained", "held_out/mae", 0.15, "they are carried over"),
    ("pretrained", "seen/slope", 1.3, "the proportion is kept"),
    ("pretrained", "seen/slope", 0.7, "the proportion is kept"),
    ("pretrained", "held_out/slope", 1.3, "the same of members held out"),
    ("pretrained", "held_out/slope", 0.7, "the same of members held out"),
    ("scratch", "held_out/mae", 0.1, "without pretraining the error on held-out"),
    ("scratch", "seen/mae", 0.2, "without pretraining members spoken of"),
    ("adapter", "seen/mae", 0.2, "an adapter and the words' table learn them"),
    ("adapter", "held_out/mae", 0.04, "an adapter and the words' table carry them over less"),
]
DECODED = {"0.7, 1": "temperature 0.7", "0.5, 1": "temperature 0.5", "1, 0.8": "top-p 0.8", "0, 1": "greedy"}
ERRORS, NULL, REPORTED = ("counting", "errors"), "null_pairs", ("halves", "reported")


@pytest.mark.parametrize(
    "change, value, broken",
    [
        *((("learning", arm, "stopped", name), around(x), said) for arm, name, x, said in LEARNT),
        *((("decoding", one, "seen/slope"), around(0.9), said) for one, said in DECODED.items()),
        ((*ERRORS, "counting"), of_targets(0.3, 0.05), "of unseen targets the generator's error"),
        ((*ERRORS, "counting"), of_targets(0.05, 0.5), "of the rarest seen target"),
        ((*ERRORS, "counting by class"), of_targets(0.3, 0.05), "of unseen targets it is below"),
        (("scorer_error", "corrected"), around(0.3), "a confusion matrix"),
        ((NULL, "seen/bootstrapped refits/any_false"), 30, "of pairs without any difference at most 0.1"),
        ((NULL, "seen/samples/any_false"), 2,
         "of pairs without any difference more than 0.1 report one, replicates: samples"),
        ((NULL, "seen/refits as independent/any_false"), 2,
         "of pairs without any difference more than 0.1 report one, replicates: refits as independent"),
        (("pairs", "seen/bootstrapped refits/recall"), 0.3, "of classes that differ by 0.3"),
        *((("communitylm", scorer, "accuracy"), [[0.9, 0.9, 0.9, x] for x in around(0.5)],
           f"CommunityLM: {scorer}'s stances name") for scorer in SCORERS),
        *((("communitylm", scorer, "correlation/targets"), 0.5,
           f"CommunityLM: {scorer}'s stances correlate") for scorer in SCORERS),
        *(case for corpus in ("reviews", "addresses") for case in (
            ((corpus, "populations", "rows"), [{"h": -0.3}] * 40, f"{corpus}: generated opinions lean"),
            ((corpus, *REPORTED, "bootstrapped refits"), 30, f"{corpus}: of random halves' classes at most"),
            ((corpus, *REPORTED, "samples"), 2, f"{corpus}: of random halves' classes more than"),
        )),
    ],
)  # fmt: skip
def test_a_contradiction_turns_its_own_claim_around(change, value, broken):
    [fails] = [claim for claim in judged(change, value) if claim.verdict != "holds"]
    assert fails.verdict == "fails" and fails.claim.startswith(broken)
