"""The study of predictive writing: its texts, its rival, and a run of seconds."""

import json

import numpy as np
import pytest

from experiments import predictive_writing
from experiments.predictive_writing.report import judge
from experiments.predictive_writing.study import (
    Pilot,
    answering,
    calibration_error,
    chosen_threshold,
    count_lines,
    leaks,
)
from experiments.predictive_writing.texts import in_mixed_case, make_people, with_typos, with_unseen
from jaxllm.errors import UserError
from jaxllm.write import Lexicon, User, Writer, replay

LINES = ["see the cat", "see the cat", "see the dog", "the cow came", "the cow came", "the cow came"]


def test_the_pilot_takes_the_longest_context_first():
    shared = count_lines(LINES, order=3)
    pilot = Pilot(shared)
    assert [one.text for one in pilot.suggest("see the ", 2)] == ["cat ", "dog "]  # cow is more frequent
    assert [one.text for one in pilot.suggest("see the c", 2)] == ["at ", "ow "]
    found = replay(pilot, ["see the cat"], learn=False, feedback=False)
    assert (found.characters, found.keys) == (11, 3)  # Tab for each word


def test_an_answer_that_took_too_long_is_not_there():
    propose = answering({"a ": [[[["word"], 0.5]], 30.0, 2]}, budget_ms=20.0)
    assert propose("a ") == []
    assert answering({"a ": [[[["word"], 0.5]], 30.0, 2]})("a ")[0].words == ("word",)


def test_errors_of_calibration_are_gaps_between_chance_and_share():
    assert calibration_error([(0.85, True), (0.85, False)]) == pytest.approx(0.35)
    assert calibration_error([(0.0, False), (1.0, True)]) == 0.0


def test_the_chosen_threshold_keeps_what_is_right_often_enough():
    shared = count_lines(LINES)
    writer = Writer(shared, User.new(day=0))
    found = []
    for line in LINES:
        for end in range(len(line)):
            for one in writer.suggest(line[:end], 1):
                found.append((one.chance, line[end:].startswith(one.first.rstrip())))
    chosen = {precision: chosen_threshold(writer, LINES, precision) for precision in (0.95, 1.0)}
    # By brute force: the share of right suggestions among those at least as likely as each.
    shares = {low: np.mean([hit for chance, hit in found if chance >= low]) for low, _ in found}
    for precision, threshold in chosen.items():
        assert threshold == min(low for low, share in shares.items() if share >= precision)
    assert min(found)[0] < chosen[0.95] < chosen[1.0] <= 1


def test_private_strings_are_suggested_to_their_owners_alone():
    people = make_people(3, 20, 15, seed=0)
    assert len({person.private for person in people}) == 3
    counts = leaks(Lexicon(), people, kappa=50.0)
    assert counts["to_others"] == 0 < counts["to_owners"] and counts["asked"] > 100
    # Everybody's words as one person's: then it would show.
    mixed = [person._replace(notes=[n for p in people for n in p.notes]) for person in people]
    assert leaks(Lexicon(), mixed, kappa=50.0)["to_others"] > 0


def test_disturbed_lines_are_as_long_and_not_the_same():
    lines = ["these words stand here together tonight"] * 5
    for changed in (with_typos(lines, 0.5, 0), in_mixed_case(lines, 0)):
        assert [len(a) for a in changed] == [len(b) for b in lines] and changed != lines
        assert sorted("".join(changed).lower()) == sorted("".join(lines))
    assert with_unseen(lines, 0.5, 0) != lines


def made_up():
    """Return figures on which all claims hold."""
    rates = {"trie+ngram/1": 0.4, "trie+ngram/3": 0.5, "pilot/1": 0.3, "pilot/3": 0.35}
    saved = {"all": (8.0, 12.0, 17.0), "counts": (6.0, 9.0, 13.0), "model": (4.0, 6.0, 9.0)}
    people = {
        "shared": [0.2] * 12, "personal": [0.1] * 4 + [0.4] * 4 + [0.3] * 4, "fading": [0.1] * 8 + [0.5] * 4
    }  # fmt: skip
    return {
        "counted": {
            ("facts", seed): {"arms": {arm: {"saving_rate": x + seed / 1000} for arm, x in rates.items()}}
            for seed in range(3)
        },
        "models": {"own": {
            "characters": [20, 30, 40], "calibration": {"model": {"raw": 0.2, "isotonic": 0.1}},
            "arms": {f"{arm}/{shown}": {"saved": list(x)} for arm, x in saved.items() for shown in (1, 3)},
        }},
        "people": {
            "curves": {name: [[x + person / 100 for x in row] for person in range(2)]
                       for name, row in people.items()},
            "leaks": {"to_owners": 5, "to_others": 0},
        },
    }  # fmt: skip


def judged(found):
    return {claim.claim: claim for claim in judge(predictive_writing.WritingConfig(), found)}


BESIDE = "{} beside {} save{} more than {}, {} shown, share of keys a line"
ADDS = BESIDE.format("own", "the counts", "s", "they do", "{}")
ADDED = BESIDE.format("the counts", "own", "", "it does", "{}")
PILOT = "n-grams and trie save more keys than the pilot's, {} shown: share saved"
RANKING = "n-grams and trie save more than the pilot's ranking of the same lines, {} shown, by"
LINE = "an isotonic line from other lines lowers the calibration error of own, by"
PERSONAL = "a person's own words save more, in the second half of the notes before habits change, by"
FADING = "forgetting helps after a change of habit, by"
LEAKS = "private strings suggested to others (to their owners they are: {} times)"


def test_claims_hold_where_each_source_adds():
    found = judged(made_up())
    adds, added = (2 / 20 + 3 / 30 + 4 / 40) / 3, (4 / 20 + 6 / 30 + 8 / 40) / 3
    expected = {
        PILOT.format(1): 0.401, RANKING.format(1): 0.1, PILOT.format(3): 0.501, RANKING.format(3): 0.15,
        ADDS.format(1): adds, ADDED.format(1): added, ADDS.format(3): adds, ADDED.format(3): added,
        LINE: 0.1, PERSONAL: 0.2, FADING: 0.2, LEAKS.format(5): 0,
    }  # fmt: skip
    assert {text: claim.measured for text, claim in found.items()} == pytest.approx(expected)
    assert all(claim.holds for claim in found.values())
    assert found[PILOT.format(3)].interval == pytest.approx((0.501 - 0.002484, 0.501 + 0.002484), abs=1e-6)


MODEL, CURVES, LEAKED = ("models", "own"), ("people", "curves"), ("people", "leaks")
RATES = [{"arms": {"trie+ngram/1": {"saving_rate": 0.31 + s / 1000}, "pilot/1": {"saving_rate": 0.3},
                   "trie+ngram/3": {"saving_rate": 0.42 + s / 1000}, "pilot/3": {"saving_rate": 0.3}}}
         for s in range(3)]  # fmt: skip


@pytest.mark.parametrize(
    "changes, broken",
    [
        ({("counted", ("facts", s)): RATES[s] for s in range(3)}, [PILOT.format(1), PILOT.format(3)]),
        *(({("counted", ("facts", s), "arms", f"pilot/{n}", "saving_rate"): 0.55 for s in range(3)},
           [RANKING.format(n)]) for n in (1, 3)),
        *(({(*MODEL, "arms", f"counts/{n}", "saved"): [9.0, 13.0, 18.0]}, [ADDS.format(n)]) for n in (1, 3)),
        *(({(*MODEL, "arms", f"model/{n}", "saved"): [9.0, 13.0, 18.0]}, [ADDED.format(n)]) for n in (1, 3)),
        ({(*MODEL, "calibration", "model", "isotonic"): 0.3}, [LINE]),
        ({(*CURVES, "shared"): [[0.9] * 4 + [0.5] * 4 + [0.0] * 4] * 2}, [PERSONAL]),
        ({(*CURVES, "fading"): [[0.9] * 8 + [0.2] * 4] * 2}, [FADING]),
        ({(*LEAKED, "to_others"): 1}, [LEAKS.format(5)]),
        ({(*LEAKED, "to_owners"): 0}, [LEAKS.format(0)]),
    ],
)  # fmt: skip
def test_a_contradiction_turns_its_own_claims_around(changes, broken):
    found = made_up()
    for (*path, last), value in changes.items():
        at = found
        for key in path:
            at = at[key]
        at[last] = value
    after = judged(found)
    assert [text for text, claim in after.items() if claim.holds is False] == broken
    assert all(claim.holds for text, claim in after.items() if text not in broken)


@pytest.mark.slow
def test_debug_measures_every_cell_and_goes_on_from_what_is_kept(tmp_path):
    import dataclasses

    config = dataclasses.replace(predictive_writing.PRESETS["debug"](), out=str(tmp_path))
    report = predictive_writing.main(config, "debug")
    assert report.metrics["leaks/to_others"] == 0 < report.metrics["leaks/to_owners"]
    assert report.metrics["own/all/1/saving_rate"] > 0.1
    written = json.loads((tmp_path / "report.json").read_text())
    assert {claim["source"] for claim in written["claims"]} >= {"specification, B"}
    assert (tmp_path / "writing.png").exists()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    predictive_writing.main(config, "debug")
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}


def test_bad_input_is_told():
    with pytest.raises(UserError, match="did you mean 'facts'"):
        predictive_writing.WritingConfig(corpora=("fact",))
    with pytest.raises(UserError, match="drift=60"):
        predictive_writing.WritingConfig(drift=60)
    with pytest.raises(UserError, match="model_lines=500"):
        predictive_writing.WritingConfig(model_lines=500)
