"""Texts are kept, split and told apart as the study says; its debug run holds together."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import showerthoughts
from experiments.showerthoughts.detectors import (
    Labels,
    TrainedConfig,
    accuracy,
    likelihood_detector,
    mixed,
    scratch_detector,
)
from experiments.showerthoughts.generators import Trigrams
from experiments.showerthoughts.ratings import difference, simulate
from experiments.showerthoughts.report import judge, set_measures
from experiments.showerthoughts.texts import keep_post, overlaps, read_posts, read_released, short_texts
from jaxllm.errors import UserError
from jaxllm.measures import find_copies


def test_posts_are_kept_by_the_authors_three_rules_and_broken_lines_counted(tmp_path, capsys):
    good = {"title": "A post", "selftext": ""}
    for record, reason in [
        (good, None), (good | {"removed_by_category": None}, "removed"),
        (good | {"selftext": "more"}, "has a body"), (good | {"post_hint": "image"}, "is an image"),
        (good | {"post_hint": "link"}, None), ({}, "no title"),
    ]:  # fmt: skip
        assert keep_post(record) == reason
    lines = [json.dumps(good), "{broken", "[1]", json.dumps(good | {"selftext": "x"}), json.dumps(good)]
    (tmp_path / "posts.ndjson").write_text("\n".join(lines))
    kept = read_posts(tmp_path / "posts.ndjson")
    assert kept.texts == ["A post"] * 2 and kept.dropped == {"broken": 2, "has a body": 1}
    assert "2 broken lines" in capsys.readouterr().out
    (tmp_path / "none.ndjson").write_text("{")
    with pytest.raises(UserError, match="no post of .* is kept ..'broken': 1"):
        read_posts(tmp_path / "none.ndjson")


def test_released_files_are_read_and_their_overlaps_counted(tmp_path):
    rows = [{"title": "One two three", "label": "generated"}, {"title": "Four five", "label": "genuine"}]
    for part, some in (("train", rows), ("test", rows[:1])):
        text = "\n".join([*map(json.dumps, some), "{"])
        (tmp_path / f"roberta_{part}_data_mixed.ndjson").write_text(text)
    samples = "<|showerthought|>A b<|endoftext|> \n<|showerthought|>no end"
    (tmp_path / "generated_showerthoughts_4_gpt2.txt").write_text(samples)
    found = read_released(tmp_path)
    assert found.splits["mixed/train"] == [("One two three", 1), ("Four five", 0)]
    assert found.samples == {"GPT-2": ["A b", "no end"]}
    texts = {name: [text for text, _ in some] for name, some in found.splits.items()}
    texts["mixed/test"].append("ONE, two three!")
    assert overlaps(texts) == {"mixed/test in mixed/train": 2}
    with pytest.raises(UserError, match="holds no roberta_"):
        read_released(tmp_path / "other")


def test_trigrams_say_only_pairs_that_they_read():
    texts = short_texts("addresses")[:200]
    found = Trigrams(texts).sample(20, seed=0)
    assert len(found.texts) == 20 and 0 < found.ended <= 1
    pairs = {pair for text in texts for pair in zip(text.split(), text.split()[1:], strict=False)}
    assert all(set(zip(t.split(), t.split()[1:], strict=False)) <= pairs for t in found.texts)
    assert find_copies(found.texts, texts).longest.min() >= 2


def test_likelihood_learns_a_threshold_and_its_side():
    draw = np.random.default_rng(0)
    genuine, generated = [f"g {i}" for i in range(40)], [f"m {i}" for i in range(40)]
    train, test = mixed(genuine[:30], generated[:30], 0), mixed(genuine[30:], generated[30:], 1)
    for side in (1, -1):
        nats = {text: 3 + side * (text[0] == "g") + 0.1 * draw.normal() for text in genuine + generated}
        detector = likelihood_detector(lambda texts, nats=nats: np.array([nats[t] for t in texts]), train)
        found = accuracy(detector, test)
        assert found["accuracy"] == found["auc"] == 1 and sum(n for _, n in found["by_length"]) == 20
    assert Labels(["“A.”"], np.array([True])).normalized().texts == ["a"]
    with pytest.raises(UserError, match="one of both sets is empty"):
        mixed([], ["x"], 0)


def test_a_planted_difference_of_ratings_is_found():
    some = simulate(1.0, np.random.default_rng(1), raters=20, texts=40, each=30)
    mean, (low, high) = difference(some, draws=100)
    assert 0.5 < mean < 1.3 and 0 < low < mean < high


def test_configs_that_cannot_work_are_refused_in_a_sentence(tmp_path):
    for change, said in [
        (dict(generators=("gpt5",)), "unknown generator 'gpt5'"), (dict(detectors=()), "detectors is empty"),
        (dict(sampled=5), "sampled is 5"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=said):
            dataclasses.replace(showerthoughts.ShowerConfig(), **change)
    (tmp_path / "few.txt").write_text("only one line of five words\n")
    for source, said in [
        ("nowhere", "no texts at 'nowhere'"),
        (str(tmp_path / "few.txt"), "a study needs 100"),
    ]:
        with pytest.raises(UserError, match=said):
            short_texts(source)


def test_claims_follow_the_figures():
    cell = lambda share: {
        "accuracy": share,
        "low": share - 0.02,
        "high": share + 0.02,
        "n": 1000,
        "auc": share,
    }
    matrix = {"a": {"a": cell(0.9), "b": cell(0.6)}, "b": {"a": cell(0.6), "b": cell(0.9)}}
    grid = [
        dict(temperature=t, top_p=1.0, distinct_2=t, detected=1 - t / 2) for t in (0.7, 0.8, 0.9, 1.0, 1.2)
    ]
    ratings = {"planted/covered": 95, "none/covers_zero": 96, "studies": 100}
    for rows, holds in ((matrix, True), ({n: dict.fromkeys("ab", cell(0.5)) for n in "ab"}, False)):
        claims = judge({"matrix": {"linear": rows}, "grid": grid, "ratings": ratings})
        assert [claim.holds for claim in claims][0] is holds and len(claims) == 6
        assert [claim.holds for claim in claims][2:] == [True] * 4
    measured = set_measures(["a b c d e f g h", "z z z"], ["A b c d e f g h."], None, budget=8)
    assert measured["copied_8"] == measured["exact_copies"] == 0.5 and measured["longest_copy"] == 8


@pytest.mark.slow
def test_an_encoder_from_scratch_learns_a_mark_that_gives_a_source_away(tmp_path):
    texts = short_texts("addresses")[:160]
    train, test = (mixed(some[:40], [f"zzz {t}" for t in some[40:]], 0) for some in (texts[:80], texts[80:]))
    how = TrainedConfig(scratch_steps=40, longest=32, embed_dim=32, num_layers=1)
    found = accuracy(scratch_detector(train, how, 0, tmp_path), test)
    assert found["accuracy"] > 0.9 and found["n"] == 80


@pytest.mark.slow
def test_the_debug_run_writes_its_report_and_goes_on_from_its_cells(tmp_path):
    config = dataclasses.replace(showerthoughts.PRESETS["debug"](), out=str(tmp_path))
    report = showerthoughts.main(config, "debug")
    assert (
        report.metrics["style/tag_ids"] == 1
        and report.metrics["style/nats_after"] < report.metrics["style/nats_before"]
    )
    assert {path.name for path in tmp_path.glob("*.png")} == {"detectors.png", "sampling.png"}
    cells = {path: path.read_bytes() for path in (tmp_path / "cells").glob("*.json")}
    assert len(cells) >= 8 and showerthoughts.main(config, "debug").metrics == report.metrics
    assert {path: path.read_bytes() for path in cells} == cells
