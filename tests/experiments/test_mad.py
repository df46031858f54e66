"""MAD's study: arms of equal size, batches and losses that are what they are called, its debug run."""

import dataclasses
import fnmatch
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import mad
from experiments.mad import study as cells_of
from experiments.mad.arms import HAND_MADE, PARTS, Sizes
from experiments.mad.report import given_mixture, judge, metrics, plot, sections
from experiments.mad.study import GIVEN, SWEEP, TRAINED, WIDE, Study, Training, prepared_run, study_optimizer
from experiments.mad.training import mad_arrays, sinusoids, solver, training_task
from experiments.shared.epochs import alternate_halves, epochs
from experiments.shared.mixture_searches import SEARCHES
from jaxllm import models, targets
from jaxllm.errors import UserError
from jaxllm.models import HybridConfig
from jaxllm.synthetic import MAD, MadTask
from jaxllm.train import RunConfig
from jaxllm.train.prepare import prepare

TASK = MadTask("in_context_recall", vocab_size=8, length=12, train=40, test=16)
SIZES = Sizes(embed_dim=8, num_heads=2, state_dim=2)


def test_wide_parts_are_as_large_as_the_hybrid():
    """To a twentieth, by parameters and by FLOPs; a hybrid has both parts' layers and one mixture a block."""
    study = Study({}, Sizes(embed_dim=64), Training(), "")
    task = dataclasses.replace(MAD["in_context_recall"], length=32)
    one, two = (study.model(task, f"hybrid {blocks}") for blocks in (1, 2))
    assert isinstance(two, HybridConfig) and two.num_params - one.num_params == 2
    for arm in WIDE:
        wide = study.model(task, arm)
        if arm.endswith("parameters"):
            assert abs(wide.num_params / two.num_params - 1) < 0.05, arm
        else:
            assert abs(wide.flops_per_token(32) / two.flops_per_token(32) - 1) < 0.05, arm
    sizes = [study.model(task, arm).num_params for arm in (*PARTS, *HAND_MADE)]
    assert max(sizes) < two.num_params < 1.1 * sum(sizes[:2])


def test_batches_go_through_all_and_a_held_out_half_stays_apart():
    part = {"x": np.arange(12)}
    order = epochs(part, 4, seed=0)
    first, second = ([next(order)["x"] for _ in range(3)] for _ in range(2))
    assert sorted(np.concatenate(first)) == sorted(np.concatenate(second)) == list(range(12))
    assert np.concatenate(first).tolist() != np.concatenate(second).tolist()
    both = alternate_halves(part, 3, seed=0)
    weights, mixtures = zip(*((next(both)["x"], next(both)["x"]) for _ in range(4)), strict=True)
    assert set(np.concatenate(weights)) == set(range(6))
    assert set(np.concatenate(mixtures)) == set(range(6, 12))


@pytest.mark.slow
def test_weights_move_as_often_in_every_search():
    """Counted with gradients of ones: alternating searches rest their weights at every second step."""
    training = Training(steps=3, points=1)
    model = Study({}, SIZES, training, "").model(TASK, "hybrid 1")
    axes = solver(model).axes
    shapes = jax.eval_shape(solver(model).init, jax.random.key(0))
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)
    moved = {}
    for name, search in SEARCHES.items():
        optimizer = study_optimizer(model, axes, training, search)
        state, update, moved[name] = optimizer.init(params), jax.jit(optimizer.update), 0
        for _ in range(prepared_run(model, False, training, search).config.steps):
            updates, state = update(params, state, params)
            moved[name] += any(np.any(x != 0) for x in jax.tree.leaves(updates["parts"]))
    assert moved == dict.fromkeys(SEARCHES, 3)


def test_weights_read_the_first_half_beside_one_held_out(monkeypatch, tmp_path):
    """And so do the mixtures of the control."""
    study = Study({"recall": TASK}, SIZES, Training(steps=2, points=1, batch_size=8), str(tmp_path))
    half = {tuple(row) for row in mad_arrays(TASK, "train", 0)["inputs"][:20]}
    seen = []

    def read(run, start, batches, measure, seed):
        drawn = batches()
        seen.append([half.issuperset(map(tuple, next(drawn)["inputs"])) for _ in range(4)])
        return None, []

    monkeypatch.setattr(cells_of, "train_epochs", read)
    for arm in ("alternating, first half", "held out"):
        with pytest.raises(UserError, match="diverged"):
            study.run("recall", arm, 0)
    assert seen == [[True] * 4, [True, False, True, False]]


def test_a_kept_cell_is_of_the_code_that_it_comes_from(monkeypatch):
    """Its key has a digest of every module of experiments that the study calls."""
    keys = []
    monkeypatch.setattr(cells_of, "code_digest", lambda *patterns: patterns, raising=False)
    monkeypatch.setattr(cells_of, "kept_result", lambda path, measure, **decisive: keys.append(decisive))
    Study({"recall": TASK}, SIZES, Training(), "").run("recall", "mamba", 0)
    called = {getattr(value, "__module__", None) or "" for value in vars(cells_of).values()}
    called = {name for name in called if name.startswith("experiments.")} - {"experiments.grid"}
    for name in called:
        path = name.removeprefix("experiments.").replace(".", "/") + ".py"
        assert any(fnmatch.fnmatch(path, pattern) for pattern in keys[0]["code"]), path
    assert len(called) > 5


def test_a_loss_is_of_targets_where_they_stand():
    """Against float64 NumPy; ignored ones are left out, and nothing is shifted again."""
    model = Study({}, SIZES, Training(), "").model(TASK, "attention")
    solves = solver(model)
    params, batch = solves.init(jax.random.key(0)), mad_arrays(TASK, "test", 0)
    trained = training_task(solves, 16, TASK.length)
    both = jax.jit(lambda params: (solves.logits(params, batch["inputs"]), trained.loss(params, batch, None)))
    logits, (mean, sums) = both(params)
    logits = np.asarray(logits, np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    rows, places = np.nonzero(batch["targets"] >= 0)
    expected = -log_probs[rows, places, batch["targets"][rows, places]].mean()
    np.testing.assert_allclose(mean, expected, rtol=1e-5)
    assert int(sums["token_count"]) == len(rows) < batch["targets"].size


def test_compression_is_read_from_the_last_state_alone(monkeypatch):
    """Its decoder knows the place; what it says does not change with a state that is not the last."""
    assert sinusoids(5, 7).shape == (5, 7)
    task = MadTask("compression", vocab_size=6, length=5)
    solves = solver(Study({}, SIZES, Training(), "").model(task, "mamba"), decoder=True)
    shapes = jax.eval_shape(solves.init, jax.random.key(0))
    said = jax.eval_shape(solves.logits, shapes, jax.ShapeDtypeStruct((3, 5), "int32"))
    assert said.shape == (3, 5, 6) and set(shapes) == {"model", "decoder"}
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda x: draw.normal(size=x.shape).astype(np.float32), shapes)
    states, tokens = draw.normal(size=(3, 5, SIZES.embed_dim)).astype(np.float32), np.zeros((3, 5), np.int32)

    def given(states):
        monkeypatch.setattr(models, "trunk", lambda *asked: states)
        return np.asarray(solves.logits(params, tokens))

    said = given(states)
    others = states.copy()
    others[:, :-1] += 1.5
    np.testing.assert_array_equal(given(others), said)
    others[:, -1, 0] += 1.5
    assert (given(others) != said).any(axis=2).all()


def test_mixtures_are_given_as_they_are_called():
    end = lambda share: [{"curve": [{"mixture": [[share, 1 - share], [0.5, 0.5]]}]}]
    cells = {(name, "hybrid 2"): end(share) for name, share in (("a", 0.9), ("b", 0.2), ("c", 0.4))}
    of = lambda kind: given_mixture(kind, cells, "abc", "a", 0, 7)
    np.testing.assert_allclose(of("uniform"), 0.5)
    np.testing.assert_allclose(of("searched")[0], [0.9, 0.1])
    np.testing.assert_allclose(of("programmed")[0], [0.3, 0.7])
    np.testing.assert_allclose(of("random").sum(axis=1), 1)
    np.testing.assert_array_equal(of("random"), of("random"))


def test_every_mixture_of_the_sweep_is_given():
    asked = {}
    study = SimpleNamespace(run=lambda name, arm, seed, mixture: asked.update({arm: mixture}))
    mad._searches(mad.MadConfig(searches=tuple(SWEEP)), study, {})
    assert {arm: np.round(mixture, 6).tolist() for arm, mixture in asked.items()} == {
        "alpha 0.25": [[0.25, 0.75]], "alpha 0.5": [[0.5, 0.5]], "alpha 0.75": [[0.75, 0.25]],
    }  # fmt: skip


def made_up_cells(tasks, proxies):
    """Return cells of three seeds: an arm's accuracy is its place in the list over 100, and a seed's."""
    arms = (*TRAINED, "ensemble", *mad.SEARCHED, *GIVEN, *SWEEP)

    def cell(arm, seed):
        share = 0.1 * (seed + 1)
        mixture = [[share, 1 - share], [0.5, 0.5]]
        value = 0.5 + arms.index(arm) / 100 + seed / 1000
        curve = [{"step": step, "accuracy": 0.95 if step > 4 else 0.1, "mixture": mixture} for step in (4, 8)]
        return {"curve": curve, "accuracy": value, "one_hot_accuracy": value - 0.01, "parameters": 7,
                "flops": 9, "cpu_seconds": 1.0}  # fmt: skip

    named = [(name, arm) for name in tasks for arm in (*TRAINED, "ensemble")]
    named += [(name, "hybrid 2") for name in proxies]
    named += [(tasks[0], arm) for arm in arms[arms.index("ensemble") + 1 :]]
    return arms, {key: [cell(key[1], seed) for seed in range(3)] for key in named}


def test_a_report_reads_its_cells(tmp_path):
    """Of made-up cells every claim's figure is the difference that was made; pictures are drawn."""
    names, proxies = ("in_context_recall", "selective_copying"), ("noisy_recall", "memorisation")
    arms, cells = made_up_cells(names, proxies)
    tasks = {name: mad.SHORT[name] for name in names}
    claims = judge(cells, tasks, names[0])
    apart = lambda one, others: (arms.index(one) - max(map(arms.index, others))) / 100
    equal = [[arm for arm in WIDE if arm.endswith(what)] for what in ("parameters", "FLOPs")]
    expected = [apart("hybrid 2", others) for others in (PARTS, *equal, ("ensemble",), HAND_MADE)]
    np.testing.assert_allclose([claim.measured for claim in claims[:5]], expected, atol=1e-12)
    assert [claim.verdict for claim in claims[:5]] == ["holds", "fails", "fails", "fails", "holds"]
    by_text = {claim.claim: claim for claim in claims}
    [rounding] = [claim for text, claim in by_text.items() if text.startswith("rounded to one part")]
    assert abs(rounding.measured + 0.01) < 1e-9 and rounding.verdict == "holds"
    [drawn] = [claim for text, claim in by_text.items() if "a random one" in text]
    assert abs(drawn.measured - apart("searched", ["random"])) < 1e-9
    [regret] = [claim for text, claim in by_text.items() if "best of a sweep" in text]
    assert abs(regret.measured + apart("hybrid 1", (*SWEEP, *PARTS))) < 1e-9
    [agreement] = [claim for text, claim in by_text.items() if "correlation" in text]
    assert abs(agreement.measured - 1) < 1e-6  # the same mixture on every task
    tables = sections(cells, tasks, names[0], {name: {"guessing": 0.25} for name in names})
    assert "0.10 0.50; 0.20 0.50; 0.30 0.50" in tables["Attention's share by block, a seed each"]
    assert len(metrics(cells)) > 60
    plot(cells, tasks, names[0], tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {"curves.png", "mixtures.png", "searches.png"}


def test_what_cannot_be_run_is_told():
    with pytest.raises(UserError, match="unknown task at the sizes 'manticore': 'compression'"):
        mad.MadConfig(tasks=("in_context_recall", "compression"), proxies=(), sizes="manticore")
    with pytest.raises(UserError, match="search_task is in_context_recall; name it in tasks too"):
        mad.MadConfig(tasks=("fuzzy_recall",))
    with pytest.raises(UserError, match="memorisation is among tasks and proxies"):
        mad.MadConfig(tasks=("in_context_recall", "memorisation"))
    with pytest.raises(UserError, match="unknown name in arms: 'hybrid'; did you mean 'hybrid"):
        mad.MadConfig(arms=("attention", "hybrid"))
    with pytest.raises(UserError, match="arms leave out mamba, which claims are of"):
        mad.MadConfig(arms=("attention", "hybrid 1", "hybrid 2"))
    with pytest.raises(UserError, match="seeds is"):
        mad.MadConfig(seeds=(0,))


@pytest.mark.slow
def test_a_search_moves_mixtures_and_a_given_one_stays(tmp_path):
    study = Study({"recall": TASK}, SIZES, Training(steps=6, points=2, batch_size=8), str(tmp_path))
    for arm in ("held out", "GAEA"):
        last = study.run("recall", arm, 0)["curve"][-1]
        assert not np.allclose(last["mixture"], 0.5), arm
        np.testing.assert_allclose(np.sum(last["mixture"], axis=1), 1, atol=1e-5)
    given = np.array([[0.3, 0.7], [0.8, 0.2]])
    found = study.run("recall", "random", 0, given)
    np.testing.assert_allclose(found["curve"][-1]["mixture"], given, atol=1e-5)
    assert study.run("recall", "random", 0, given) == found  # kept


@pytest.mark.slow
def test_the_debug_run_writes_its_report(tmp_path):
    report = mad.main(dataclasses.replace(mad.PRESETS["debug"](), out=str(tmp_path)), "debug")
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["metrics"] == report.metrics and len(report.claims) >= 4
    assert {path.name for path in tmp_path.glob("*.png")} == {"curves.png", "mixtures.png", "searches.png"}


@pytest.mark.targets
@pytest.mark.skipif(not targets.is_available("h100"), reason="needs the compiler of an H100")
def test_the_papers_hybrid_trains_within_an_h100():
    config = mad.PRESETS["paper"]()
    task = mad.SIZES[config.sizes]["memorisation"]
    study = Study({}, config.models, config.training, "")
    model = study.model(task, "hybrid 2")
    solves, training = solver(model), config.training
    trained = training_task(solves, training.batch_size, task.length)
    optimizer = study_optimizer(model, solves.axes, training, SEARCHES["simultaneous"])
    job = prepare(trained, RunConfig(), optimizer=optimizer, devices=targets.devices("h100"))
    forecast = targets.compile(job.steps[0][1], (job.shapes, job.batch_shapes), "h100")
    assert forecast.fits and forecast.peak_bytes > 3 * 4 * model.num_params
