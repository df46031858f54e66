"""What a run may go on as: on its own text, wherever that lies, and as long as its schedule allows."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from jaxllm.data import load_tokenizer
from jaxllm.errors import UserError
from jaxllm.in_context import ReasonerRun
from jaxllm.optim import OptimConfig
from jaxllm.text import LabelConfig, TrainConfig, prepare, train
from jaxllm.text.load import TOKENIZER_FILE
from jaxllm.text.resume import begun, check_same_steps
from jaxllm.train import init_state, to_dict
from jaxllm.train.checkpoint import Checkpoints
from jaxllm.train.start import begin

ONE = jax.devices()[:1]
STEP = 3


def write(config, **options):
    """Write what `train` leaves behind after some steps, without taking them."""
    job = prepare(config, devices=ONE, **options)
    batches = job.batches()
    for _ in range(STEP):
        next(batches)
    with Checkpoints(f"{config.out}/checkpoints") as kept:
        state, config = job.init(jax.random.key(0)), job.config
        kept.save(state, step=STEP, data=batches.state(), config=to_dict(config))
    job.corpus.tokenizer.save(Path(config.out) / TOKENIZER_FILE)
    return job, next(batches)


def resume(config, **options):
    job = prepare(config, devices=ONE, begun=begun(config), **options)
    batches = job.batches()
    _, step, _ = begin(job, Checkpoints(f"{config.out}/checkpoints"), batches)
    assert step == STEP
    return job, batches


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def text(tmp_path, text_folder):
    """A copy of the text, to be changed."""
    return Path(shutil.copytree(text_folder, tmp_path / "text"))


@pytest.fixture
def run(tiny, text):
    return tiny(data=str(text), tokenizer="bpe:300")


def test_text_and_tokenizer_are_known_by_content_wherever_they_lie(run, text, tmp_path):
    job, batch = write(run)
    moved = str(shutil.move(text, tmp_path / "elsewhere"))
    shutil.copy(Path(run.out) / TOKENIZER_FILE, tmp_path / "mine.json")
    _, batches = resume(dataclasses.replace(run, data=moved, tokenizer=str(tmp_path / "mine.json")))
    assert_same(next(batches), batch)


@pytest.mark.parametrize("part", ["training", "held-out"])
def test_text_of_equal_length_that_has_changed_is_noticed(run, text, part):
    run = dataclasses.replace(run, tokenizer="bytes")
    job, _ = write(run)
    tokens = job.corpus.train if part == "training" else job.corpus.valid
    document = job.corpus.tokenizer.decode(tokens.document(0)[:-1])
    [file] = [path for path in text.iterdir() if path.read_text() == document]
    file.write_text(document.replace("people", "persns"))
    with pytest.raises(UserError, match=f"the {part} text of .* not what step {STEP} .* --data-changed cont"):
        resume(run)
    assert job.corpus.tokenizer.fingerprint == load_tokenizer(f"{run.out}/{TOKENIZER_FILE}").fingerprint


def test_a_file_that_was_added_is_told_of_and_the_run_can_go_on_with_it(run, text, capfd):
    run = dataclasses.replace(run, vocab_groups="frequency:16")
    job, batch = write(run)
    (text / "added.txt").write_text("zebras quietly vex jolly dwarfs " * 30)
    with pytest.raises(UserError, match=r"\d+ tokens to train on then, [\d,]+ now"):
        resume(run)
    on = dataclasses.replace(run, data_changed="continue")
    later, batches = resume(on)
    assert "going on with the new text" in capfd.readouterr().err
    assert later.corpus.tokenizer.fingerprint == job.corpus.tokenizer.fingerprint  # not one of the new text
    assert later.model.vocab_groups == job.model.vocab_groups
    fresh = later.batches()
    for _ in range(STEP):
        next(fresh)
    following = next(batches)
    assert_same(following, next(fresh))
    assert not np.array_equal(following["tokens"], batch["tokens"])


def test_another_tokenizer_is_refused_also_where_the_text_may_change(run):
    write(run)
    tokenizer = (Path(run.out) / TOKENIZER_FILE).read_bytes()
    for changes in (dict(tokenizer="bpe:301"), dict(tokenizer="char", data_changed="continue")):
        with pytest.raises(UserError, match=f"another tokenizer than '{changes['tokenizer']}'; give its own"):
            train(dataclasses.replace(run, **changes), devices=ONE)
    assert (Path(run.out) / TOKENIZER_FILE).read_bytes() == tokenizer


def test_a_checkpoint_from_before_fingerprints_is_known_by_its_counts(run, text):
    job, batch = write(run)
    folder = Path(run.out) / "checkpoints" / str(STEP)
    shutil.rmtree(folder / "checksums")
    about = json.loads((folder / "_CHECKPOINT_METADATA").read_text())
    del about["item_handlers"]["checksums"]
    (folder / "_CHECKPOINT_METADATA").write_text(json.dumps(about))
    position = json.loads((folder / "data" / "metadata").read_text())
    del position["data"], position["valid"]
    (folder / "data" / "metadata").write_text(json.dumps(position))
    _, batches = resume(run)
    assert_same(next(batches), batch)
    position["tokens"] += 1
    (folder / "data" / "metadata").write_text(json.dumps(position))
    with pytest.raises(UserError, match="the training text of .* is not what step"):
        resume(run)


@pytest.mark.parametrize(
    "optim, more, may",
    [
        (dict(schedule="constant"), 400, True),
        (dict(schedule="wsd", decay_fraction=0.2), 100, True),  # the decay begins at step 3 of 4
        (dict(schedule="wsd", decay_fraction=0.75), 100, False),  # at step 1
        (dict(schedule="cosine"), 5, False),
        (dict(schedule="cosine", warmup_steps=3), 100, True),  # nothing but warm-up so far
        (dict(schedule="linear"), 2, False),
    ],
)
def test_a_run_is_made_longer_where_the_steps_taken_are_those_of_the_longer_one(run, optim, more, may):
    optim = OptimConfig(**(dict(learning_rate=1e-2, warmup_steps=1) | optim))
    run = dataclasses.replace(run, optim=optim, steps=4)
    write(run)
    longer = dataclasses.replace(run, steps=more)
    if may:
        resume(longer)
        return
    with pytest.raises(UserError, match=rf"a run of 4 steps, .* schedule '{optim.schedule}' .* keep steps=4"):
        resume(longer)


def test_a_chain_from_outside_sets_its_own_rates(run):
    write(run, optimizer=optax.sgd(0.1))
    resume(dataclasses.replace(run, steps=100), optimizer=optax.sgd(0.1))


def test_stages_of_subnetworks_are_not_moved(run):
    model = dataclasses.replace(run.model, num_layers=4)
    run = dataclasses.replace(run, model=model, subnetwork="est-gpt2-like", steps=6,
                              optim=OptimConfig(schedule="constant", warmup_steps=1))  # fmt: skip
    write(run)
    with pytest.raises(UserError, match="the stages of its subnetworks end elsewhere"):
        resume(dataclasses.replace(run, steps=60))


@pytest.mark.parametrize("kind", [LabelConfig, ReasonerRun])
def test_a_folder_of_another_kind_of_run_is_told(kind, tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as kept:
        state = init_state(lambda key: {"w": np.zeros(2)}, optax.sgd(0.1), jax.random.key(0))
        kept.save(state, step=STEP, data={"step": STEP}, config=to_dict(kind()))
    with pytest.raises(UserError, match=f"'{tmp_path}' holds a run of another kind.* another --out"):
        begun(TrainConfig(out=str(tmp_path)))


def test_a_run_past_the_steps_asked_for_says_so(tmp_path):
    """Not of subnetworks, which it has none of, where the rates so far are the same."""
    optim = OptimConfig(schedule="constant")
    check = check_same_steps(TrainConfig(steps=30, optim=optim), None, own_rates=True)
    check({"steps": 1500}, 20, tmp_path)
    with pytest.raises(UserError, match="has taken 77 of 1500 steps already, more than steps=30"):
        check({"steps": 1500}, 77, tmp_path)
