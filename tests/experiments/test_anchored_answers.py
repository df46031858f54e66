"""Anchored answers: prompts and letters, what reads no answer, edits resumed from a layer, a debug run."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import anchored_answers
from experiments.anchored_answers import study
from experiments.anchored_answers.claims import edit_table, figures, judge, row_table, set_table, summary
from experiments.anchored_answers.plots import plot
from experiments.anchored_answers.questions import (
    COLORS,
    GENERATED,
    NAMES,
    PLACES,
    THINGS,
    Question,
    generated_sets,
    prompt,
    real_sets,
    rotations,
)
from experiments.anchored_answers.world import SEQ_LEN, documents, key, packed_rows, sentence, tokenizer
from jaxllm import data, models
from jaxllm.errors import UserError
from jaxllm.interpret import head_mask, shift_row
from tests.absent import skip_if_absent
from tests.models.random_params import random_params


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tokenizer(tmp_path_factory.mktemp("world"))


def subject_of(world, family="gpt2-nano"):
    config = models.get_preset(family, vocab_size=world.vocab_size, context_length=SEQ_LEN)
    plain = packed_rows(world, iter([sentence(np.random.default_rng(0))] * 99), 2)
    return study.Subject(family, config, random_params(config, scale=0.15), world, plain)


@pytest.fixture(scope="module")
def asked(world):
    return study.ask_about(subject_of(world), generated_sets(GENERATED, 3, 0))


def test_generated_questions_have_one_right_option_and_known_words(world):
    for name, questions in generated_sets(GENERATED, 30, 1).items():
        assert len({key(question) for question in questions}) == 30
        for question in questions:
            right = question.options[question.answer]
            if name == "greater":
                start = int(question.text.split()[-1])
                assert [int(x) > start for x in question.options].count(True) == 1 and int(right) > start
            if name == "kind":
                kinds = dict(person=NAMES, place=PLACES, thing=THINGS, color=COLORS)
                fitting = kinds[question.text.split()[-1]]
                assert [x for x in question.options if x in fitting] == [right]
            if name == "ioi":  # who went, and does not give
                assert question.text.count(right) == 1
            if name == "order":
                first, second = (text.split(" is left of the ") for text in question.text.split(".")[:2])
                pairs = [(a.split()[-1], b) for a, b in (first, second)]
                [middle] = {b for _, b in pairs} & {a for a, _ in pairs}
                row = [a for a, b in pairs if b == middle] + [middle] + [b for a, b in pairs if a == middle]
                place = ("leftmost", "in the middle", "rightmost").index(question.text.split("Which is ")[1])
                assert right == row[place]
            ids = world.encode(prompt(question))
            assert world.encode("<unk>")[0] not in ids and len(ids) + 3 <= SEQ_LEN


@pytest.mark.parametrize("words", ["world", "gpt2"])
def test_letters_stand_where_prompts_say_and_every_place_is_right_once(world, words):
    words = world if words == "world" else data.load_tokenizer("gpt2")
    config = models.get_preset("gpt2-nano", vocab_size=words.vocab_size, context_length=128)
    subject = study.Subject("any", config, {}, words, {})
    sets = generated_sets(GENERATED, 2, 0)
    asked = study.ask_about(subject, sets)
    assert len(asked.gold_P) == 2 * (2 + 3 + 4 + 5) and asked.tokens_PT[0, 0] == words.eos_id
    for row, count in enumerate(asked.options_P):
        at = asked.places_PK[row, :count]
        assert [words.decode([i]).strip() for i in asked.tokens_PT[row, at]] == list("ABCDE"[:count])
        assert words.decode([asked.tokens_PT[row, asked.last_P[row]]]) == ":"
    for number in set(asked.question_P):
        mine = asked.question_P == number
        assert sorted(asked.gold_P[mine]) == list(range(asked.options_P[mine][0]))


def test_rotations_keep_the_right_option_right():
    question = Question("?", ("p", "q", "r", "s"), 2)
    for place, one in enumerate(rotations(question)):
        assert one.answer == place and one.options[place] == "r" and sorted(one.options) == list("pqrs")


def test_a_letter_of_several_tokens_is_told(world):
    config = models.get_preset("gpt2-nano", vocab_size=257)
    subject = study.Subject("bytes", config, {}, data.load_tokenizer("bytes"), {})
    with pytest.raises(UserError, match="' A' is 2 tokens of this tokenizer, and must be one"):
        _ = subject.letters
    with pytest.raises(UserError, match="a prompt has .* tokens and the model 8 positions"):
        short = models.get_preset("gpt2-nano", vocab_size=world.vocab_size, context_length=8)
        subject = subject._replace(config=short, tokenizer=world)
        study.ask_about(subject, generated_sets(GENERATED, 1, 0))


def by_hand(subject, params, asked, sites=None):
    logits = models.apply(subject.config, params, asked.tokens_PT, sites=sites)
    logits = np.asarray(logits)[np.arange(len(asked.last_P)), asked.last_P]
    return logits[:, subject.letters], logits.argmax(1)


@pytest.mark.parametrize(
    "family", [pytest.param("gpt2-nano", marks=pytest.mark.slow), "gpt-neo-nano", "gemma-nano"]
)
def test_answers_after_an_edit_are_the_same_resumed_from_its_layer(world, asked, family):
    subject = subject_of(world, family)
    layer = subject.config.num_layers - 1
    shift = 3 * np.random.default_rng(0).normal(size=subject.config.embed_dim).astype(np.float32)
    resumed = study.Resumed(subject, asked, layer)
    assert resumed.start == layer // len(subject.config.windows) * len(subject.config.windows)
    said = resumed.answer(layer, 7, shift)
    logits, top = by_hand(subject, shift_row(subject.config, subject.params, layer, 7, shift), asked)
    within = np.arange(5) < asked.options_P[:, None]
    np.testing.assert_allclose(said.logits_PK[within], logits[within], atol=1e-4)
    assert np.isneginf(said.logits_PK[~within]).all()
    np.testing.assert_array_equal(said.top_P, top)
    assert np.abs(logits - by_hand(subject, subject.params, asked)[0]).max() > 0.1


def test_the_strength_closes_the_gap_and_reads_no_answer(world, asked):
    subject, anchor = subject_of(world), 0
    base = study.answer(subject, asked)
    blind = asked._replace(gold_P=np.full_like(asked.gold_P, -99))
    other = study.other_letters(blind, anchor)
    parts = study.scores(subject, blind, anchor, other, norm="final")
    row = study.rank_rows(parts, len(asked.gold_P))[0]
    at_anchor, at_others = study.direction(subject, anchor)
    before = study.gap(base, blind, anchor)
    resumed = study.Resumed(subject, blind, row.layer)
    strength, left = study.fit_strength(resumed, row, at_others - at_anchor, anchor, before)
    assert strength and abs(left) < 0.2 * abs(before)
    said = resumed.answer(row.layer, row.row, strength * (at_others - at_anchor))
    assert study.gap(said, blind, anchor) == pytest.approx(left, abs=1e-5)


def test_the_gap_is_a_mean_of_logits_within_the_options(asked):
    logits = np.random.default_rng(0).normal(size=(len(asked.gold_P), 5))
    answers = study._answers(asked, (logits, np.zeros(len(logits))))
    expected = [
        row[1] - np.mean(np.delete(row[:count], 1))
        for row, count in zip(logits, asked.options_P, strict=True)
    ]
    assert study.gap(answers, asked, 1) == pytest.approx(np.mean(expected))
    calibrated = study.calibrated(answers, asked, answers, asked)
    assert study.gap(calibrated, asked, 1) == pytest.approx(0, abs=1e-9)


def test_rows_are_ranked_by_mean_score_among_those_often_largest(world, asked):
    subject = subject_of(world)
    other = study.other_letters(asked, 2)
    assert not (other == 2).any() and (other < asked.options_P + (asked.options_P <= 2)).all()
    parts = study.scores(subject, asked, 0, study.other_letters(asked, 0), "final")
    count, sizes, rows = len(asked.gold_P), [], []
    for part, batch in zip(parts, study.batches(count), strict=True):
        fresh = len(set(batch.tolist()))
        sizes.append(np.abs(part.row_sizes_LBF[:, :fresh]))
        rows.append(part.rows_LBF[:, :fresh])
    sizes, rows = np.concatenate(sizes, 1), np.concatenate(rows, 1)
    share = (np.argsort(np.argsort(-sizes, -1), -1) < study.LARGEST).mean(1)
    mean = np.where(share >= min(0.5, share.max()), rows.mean(1), -np.inf)
    best = np.unravel_index(mean.argmax(), mean.shape)
    found = study.rank_rows(parts, count)[0]
    assert (found.layer, found.row) == best
    assert found.score == pytest.approx(mean.max(), abs=1e-5) and found.share == pytest.approx(share[best])


def test_exchanged_attention_is_that_of_the_two_letters(world, asked):
    subject, anchor = subject_of(world), 0
    some = asked.take(asked.gold_P != anchor)
    mask = head_mask(subject.config, [(1, 0), (1, 1)])

    def edit(probs, layer):
        new = probs
        for row, (last, gold) in enumerate(zip(some.last_P, some.gold_P, strict=True)):
            one, two = some.places_PK[row, anchor], some.places_PK[row, gold]
            kept = probs[row, :, last]
            exchanged = kept.at[:, one].set(kept[:, two]).at[:, two].set(kept[:, one])
            new = new.at[row, :, last].set(jax.numpy.where(layer == 1, exchanged, kept))
        return new

    said = study.swapped(subject, some, mask, anchor)
    logits, _ = by_hand(subject, subject.params, some, models.Sites(edits={"attn_probs": edit}))
    within = np.arange(5) < some.options_P[:, None]
    np.testing.assert_allclose(said.logits_PK[within], logits[within], atol=1e-4)


def test_measures_are_means_over_each_questions_prompts(world, asked):
    subject = subject_of(world)
    always_a = study.Answers(
        np.eye(5)[np.zeros(len(asked.gold_P), int)], np.full(len(asked.gold_P), subject.letters[0])
    )
    found = study.measured(subject, asked, always_a, 0)
    chance = [1 / asked.options_P[asked.question_P == n][0] for n in np.unique(asked.question_P)]
    np.testing.assert_allclose(found["accuracy"], chance)
    np.testing.assert_allclose(found["accuracy_full"], chance)
    for name, value in dict(anchored=1, anchored_full=1, accuracy_on_anchor=1, accuracy_on_others=0).items():
        np.testing.assert_array_equal(found[name], value)
    nobody = study.per_question(asked, np.ones(len(asked.gold_P)), asked.options_P > 2)
    assert np.isnan(nobody[:3]).all() and (nobody[3:] == 1).all()


def test_biased_text_is_as_biased_as_it_says_and_leaves_held_out_questions_out(world):
    held_out = {key(question) for found in generated_sets(GENERATED, 40, 0).values() for question in found}
    source = documents(0, held_out, habit=0.6, plain=0.25)
    texts = [next(source) for _ in range(3000)]
    questions = [text for text in texts if text.startswith("Question")]
    assert len(questions) / len(texts) == pytest.approx(0.75, abs=0.03)
    ioi = [text for text in questions if " gave a " in text]
    assert np.mean([text.endswith(" A") for text in ioi]) == pytest.approx(0.6 + 0.4 / 2, abs=0.05)
    kept = [one for found in generated_sets(GENERATED, 40, 0).values() for q in found for one in rotations(q)]
    assert not {text[:-2] for text in questions} & set(map(prompt, kept))
    rows = packed_rows(world, iter(texts), 8, letter_weight=10)
    spoken = world.decode(rows["targets"][0][rows["mask"][0] > 0]).split("<|endoftext|>")
    assert [s.strip() for s in spoken if s.strip()] == [
        world.decode(world.encode(text)) for text in texts[: len(spoken) - 1]
    ]
    letters = [world.encode(letter)[0] for letter in "ABCDE"]
    heavy = rows["mask"] == 10
    assert np.isin(rows["targets"][heavy], letters).all() and heavy.any()
    ends = np.roll(rows["targets"], -1, axis=1)[heavy]
    assert (ends == world.eos_id).all()


def test_figures_are_a_seeds_mean_or_a_questions():
    runs = [{"x": np.array([1.0, np.nan, 3.0])}, {"x": np.array([5.0])}]
    np.testing.assert_array_equal(figures(runs, lambda run: run["x"]), [2, 5])
    np.testing.assert_array_equal(figures(runs[:1], lambda run: run["x"]), [1, 3])


def fabricated(seed, questions=6):
    """Return what `examine` might find; the edit gains 0.25 everywhere, the oracle rights all prompts."""
    draw = np.random.default_rng(seed)
    base = {name: draw.uniform(0.2, 0.5, questions) for name in
            ("accuracy", "accuracy_full", "anchored", "anchored_full", "accuracy_on_anchor",
             "accuracy_on_others")}  # fmt: skip
    better = {name: x + (-0.1 if name.startswith("anchored") else 0.25) for name, x in base.items()}
    loss = {"loss": draw.uniform(1, 2, 4), "article": np.full(4, np.nan)}
    half = np.linspace(0, 1, questions)
    oracle = {}
    right = "right letter put in"
    for end in (right, f"{right}, whole vocabulary", "wrong letter put in, and said"):
        oracle |= {end: np.ones(questions), f"{end}, random row": half}
    row = study.Row(1, 5, 2.0, 0.75, 1)
    return {
        "anchor": "A", "row": row, "rows": [(row, 3.5, "'A'")], "strength": 2.0, "gap": 3.0, "gap_left": 0.1,
        "share": np.array([0.6, 0.1, 0.1, 0.1, 0.1]), "sets": np.repeat(["ioi", "kind"], questions // 2),
        "all_sets": np.repeat(["ioi", "kind"], questions // 2), "everything": base, "oracle": oracle,
        "variants": {"no edit": base, "gold-free edit": better, "random row 0": base, "random row 1": base,
                     "other active row 0": better, "random layer 0": base, "output calibrated": better,
                     "its part against the anchor": base, "its part for the others": base},
        "plain": {"no edit": loss, "gold-free edit": {n: x + 0.5 for n, x in loss.items()}},
        "swaps": {1: {"biased": half, "random": half}},
        "maps": {"heads": draw.normal(size=(2, 2)), "rows": draw.normal(size=(2, 8)),
                 "mlp_failing": draw.normal(size=(2, 5)), "mlp_succeeding": draw.normal(size=(2, 4))},
    }  # fmt: skip


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_claims_follow_from_what_was_found(tmp_path, seeds):
    runs = [fabricated(seed) for seed in seeds]
    claims = {claim.claim.partition(": ")[2]: claim for claim in judge("gpt2", runs)}
    verdicts = {text: claim.verdict for text, claim in claims.items()}
    found = lambda start: next(verdicts[text] for text in verdicts if text.startswith(start))
    headline = next(iter(claims.values()))
    assert headline.measured == pytest.approx(0.25) and headline.verdict == "holds"
    assert found("the gold-free edit lowers the held-out anchored-bias rate") == "holds"
    assert found("... in other rows") == "fails" == found("... above that of the letters' mean logits")
    assert found("it raises the loss of plain text") == "fails"
    assert not any("the English article" in text for text in verdicts)  # the plain texts had none
    assert found("ORACLE: with each prompt's right letter") == "holds" == found("ORACLE: a wrong letter")
    assert [claim.paper for text, claim in claims.items() if "failing prompts are right" in text] == [1]
    assert "**no**" not in edit_table(runs) and "other active row" in edit_table(runs)
    assert "| kind |" in set_table(runs) and "above its threshold of 4" in row_table(runs)
    assert summary(runs)["accuracy/random row"] == pytest.approx(
        np.mean([run["variants"]["no edit"]["accuracy"] for run in runs])
    )
    plot(tmp_path, "gpt2", runs)
    assert {path.name for path in tmp_path.iterdir()} == {"gpt2-edits.png", "gpt2-components.png"}


@pytest.mark.parametrize("rate, verdict", [(0.36, "holds"), (0.34, "fails"), (0.57, "fails")])
@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_the_anchored_rate_is_the_published_one_of_its_set_within_a_tenth(seeds, rate, verdict):
    """GPT-2's is 0.455 of ioi; of the other set here nothing is published."""
    runs = [fabricated(seed) for seed in seeds]
    for seed, run in zip(seeds, runs, strict=True):
        rates = rate + seed / 1e3 + np.array([-1e-3, 0, 1e-3, 9, 9, 9])
        run["everything"] = run["everything"] | {"anchored_full": rates}
    [claim] = [claim for claim in judge("gpt2", runs) if "anchored-bias rate on" in claim.claim]
    assert (claim.paper, claim.verdict) == (0.455, verdict)


def test_real_questions_have_their_answers_among_their_options():
    try:
        sets = real_sets(5, 0)
    except UserError as error:
        skip_if_absent(error)
    assert {name: len(q[0].options) for name, q in sets.items()} == dict(
        ioi=2, deduction=3, arc=4, commonsense=5, greater=4
    )
    for question in (q for found in sets.values() for q in found):
        assert question.options[question.answer] and not question.text.endswith("?")


@pytest.mark.slow
def test_the_debug_run_reports_every_edit_with_its_controls(tmp_path):
    config = dataclasses.replace(anchored_answers.PRESETS["debug"](), out=str(tmp_path))
    report = anchored_answers.main(config, "debug")
    kept = json.loads((tmp_path / "report.json").read_text())
    assert {path.name for path in tmp_path.glob("*.png")} == {"trained-edits.png", "trained-components.png"}
    assert "gold-free edit raises held-out accuracy" in report.claims[0].claim
    for variant in ("no edit", "gold-free edit", "random row", "random layer", "output calibrated"):
        assert 0 <= kept["metrics"][f"trained/accuracy/{variant}"] <= 1
    assert kept["metrics"]["trained/anchored/no edit"] > 0.9  # after 30 steps it knows the letter alone
    gain = kept["metrics"]["trained/accuracy/gold-free edit"] - kept["metrics"]["trained/accuracy/no edit"]
    assert report.claims[0].measured == pytest.approx(gain, abs=1e-9)
    assert sum("ORACLE" in claim.claim for claim in report.claims) >= 3


def test_what_cannot_be_asked_is_told_before_anything_runs():
    with pytest.raises(UserError, match="must be at least 4: half choose the edit"):
        anchored_answers.AnchoredConfig(questions=2)
    with pytest.raises(UserError, match="subjects is empty"):
        anchored_answers.AnchoredConfig(subjects=())
