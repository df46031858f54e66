"""The claims of causal space on made-up figures, and those that each contradiction turns around."""

import pytest

from experiments.causal_space import claims, study
from jaxllm.report import Claim

# Changes of the gradient's edit, and of all four controls', with blocks between.
EDITS = {
    ("relocate", "name"): (2.0, -1.0), ("away", "name"): (-5.0, -2.0), ("towards", "name"): (2.0, 1.0),
    ("towards", "greedy"): (0.1, 0.0), ("away", "classified"): (-0.5, -0.2),
}  # fmt: skip
FIGURES = {(way, arm, figure): changes[arm != "gradient"]
           for (way, figure), changes in EDITS.items() for arm in study.ARMS}  # fmt: skip
FIGURES |= {("away", arm, "classified_here"): 0.3 if arm == "gradient" else 0.6 for arm in study.ARMS}
FIGURES |= {
    "cities": 0.9, "regions": 0.6, "countries": 0.3, "exchanged": 6.0, "kendall": 0.4, "p": 0.01,
    "greedy": 0.5, "untrained": 0.2, "shuffled names": 0.4, "peer's relocation": 0.5,
}  # fmt: skip


def splits(cities, regions, countries, jitter):
    one = {"cities": cities, "regions": regions, "countries": countries}
    return [{name: {"r2": [x + jitter + more]} for name, x in one.items()} for more in (-0.001, 0, 0.001)]


def edits(figures, jitter):
    """Return edits at two depths of two layers; at the smaller displacement all is the other way around."""
    before = {"name": [-9.0, -8.0], "relocate_name": [-7.0, -6.0], "greedy": [figures["greedy"]] * 2,
              "classified": [0.6, 0.6]}  # fmt: skip
    found = []
    for (way, arm, figure), change in ((k, v) for k, v in figures.items() if isinstance(k, tuple)):
        known = f"{'relocate_' if way == 'relocate' else ''}{figure}"
        for depth, displacement in ((1, 0.1), (1, 0.2), (2, 0.1), (2, 0.2)):
            real = displacement == 0.2 and (depth == 2) == (figure == "classified_here")
            values = [x + (change + jitter) * (1 if real else -1) for x in before.get(known, [0.0, 0.0])]
            place = dict(depth=depth, displacement=displacement, way=way, arm=arm)
            same = next((one for one in found if place.items() <= one.items()), None)
            if same is None:
                found.append(same := dict(place))
            same[figure] = values
    for one in found:  # figures that no claim reads of this edit
        for figure in ("name", "greedy", "classified", "classified_here"):
            one.setdefault(figure, [0.0, 0.0])
    return {"edits": found, "before": before, "country": ["Chad", "Peru"]}


def made_up(changes, jitter=0.0):
    f = FIGURES | changes
    peer = FIGURES | {("relocate", "gradient", "name"): -1 + f["peer's relocation"]}
    return {
        "layers": 2, "edits": edits(f, jitter),
        "exchange": {"exchanged": {"displacement": [f["exchanged"] + jitter] * 2},
                     "ascent": {"displacement": [10.0, 10.0]}, "descent": {"displacement": [90.0, 90.0]}},
        "splits": splits(f["cities"], f["regions"], f["countries"], jitter),
        "similarity": {"kendall": {"score": 0.9, "with_diagonal": f["kendall"] + jitter, "p": f["p"]}},
        "peers": {
            "shuffled names": {"layers": 2, "splits": splits(0.9, f["shuffled names"], 0.9, -jitter),
                               "edits": edits(peer, -jitter)},
            "untrained": {"layers": 2, "splits": splits(0.9, f["untrained"], 0.9, -jitter)},
        },
    }  # fmt: skip


def judged(changes, name="world") -> dict[str, Claim]:
    """Return the claims by their texts: over three worlds, or (another name) of one model."""
    runs = [made_up(changes, jitter) for jitter in (-0.001, 0.0, 0.001)]
    found = claims.judge(name, runs if name == "world" else runs[1:2])
    return {claim.claim.removeprefix(f"{name}: "): claim for claim in found}


def test_claims_hold_on_a_model_that_uses_its_map():
    found = judged({})
    assert len(found) == 8 + 1 + 3 + 4 and all(claim.holds for claim in found.values())
    expected = [3, 3, 1, -5, -2, 0.1, 0.3, 0.3, 0.6, 0.2, 2.5, 0.4, 0.299, 0.3, 0.4, 0.01]
    assert [claim.measured for claim in found.values()] == pytest.approx(expected)
    found = judged({}, "a model")
    assert found.pop(TAU).holds is None  # a single figure
    assert len(found) == 16 and all(claim.holds for claim in found.values())


RELOCATED, AWAY = "given another place's coordinates", "moved away from its coordinates"
TOWARDS, LOWERS, RANDOM = "moved towards its coordinates", "away lowers", "so does a random direction"
TAU = "similarity of cities at the last layer, the paper's Kendall tau with its diagonal, within 0.1"
PEER = "R2 of a probe at half depth, regions held out, above the model's "


@pytest.mark.parametrize(
    "changes, broken",
    [
        ({("relocate", "shuffled", "name"): 3.0, "peer's relocation": -2.0}, [RELOCATED]),
        ({("away", "shuffled", "name"): -6.0}, [AWAY]),
        ({("towards", "shuffled", "name"): 3.0}, [TOWARDS]),
        ({("away", arm, "name"): -6.0 if arm == "random" else 1.0 for arm in study.ARMS}, [AWAY, LOWERS]),
        ({("away", "random", "name"): 1.0}, [RANDOM]),
        ({("towards", "gradient", "greedy"): -0.1}, ["towards raises greedy accuracy"]),
        ({("away", "shuffled", "classified"): -0.6}, ["with blocks between, away costs"]),
        ({("away", "shuffled", "classified_here"): 0.1}, ["without blocks between"]),
        ({"exchanged": 4.0}, ["100 steps of the paper's own control"]),
        ({"shuffled names": 0.7}, [f"{PEER}shuffled names peer"]),
        ({"untrained": 0.7}, [f"{PEER}untrained peer"]),
        ({"peer's relocation": 4.0}, ["what relocation does beyond controls, above the same of the"]),
        ({"countries": -0.1}, ["R2 of a probe at half depth, whole countries held out"]),
        ({"cities": 0.5}, ["what a random split of cities adds"]),
        ({"kendall": 0.6}, [TAU]),
        ({"kendall": 0.2}, [TAU]),
        ({"p": 0.06}, ["the largest p-value of that tau"]),
    ],
)  # fmt: skip
def test_a_contradiction_turns_its_own_claim_around(changes, broken):
    turned = {text: claim.holds for text, claim in judged(changes).items() if not claim.holds}
    assert len(turned) == len(broken) and not any(holds is None for holds in turned.values())
    assert all(text.startswith(start) for text, start in zip(turned, broken, strict=True))


@pytest.mark.parametrize("greedy", [0.3, 0.7])
def test_a_pretrained_model_that_names_fewer_or_more_countries_is_not_as_the_paper_s(greedy):
    [turned] = [text for text, claim in judged({"greedy": greedy}, "a model").items() if claim.holds is False]
    assert turned.startswith("names the country of places no probe has seen")
