"""The study of predictive writing: its texts, its rival, and a run of seconds."""

import json

import pytest

from experiments import predictive_writing
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
    assert 0 <= chosen_threshold(writer, LINES, 0.3) <= chosen_threshold(writer, LINES, 0.9) <= 1


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
