"""What a run on text says of itself: its first lines, its last evaluation, the texts that it writes."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxllm import data
from jaxllm.errors import UserError
from jaxllm.generate import SamplingConfig, generate_text
from jaxllm.text import evaluate, samples, train
from jaxllm.text.about import about, about_data
from jaxllm.text.config_file import read_config
from jaxllm.text.load import load_run
from jaxllm.train import plot
from jaxllm.train.writers import read_metrics

pytestmark = pytest.mark.usefixtures("steps_shared")
TOKENS = 8  # of a sample
ONE = dict(devices=jax.devices()[:1])


@pytest.fixture(autouse=True)
def short_samples(monkeypatch):
    monkeypatch.setattr(samples, "_TOKENS", TOKENS)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_first_lines_say_what_is_trained_on_what_and_how(tiny, capsys, monkeypatch):
    monkeypatch.setattr(plot, "plot_curves", lambda folder: None)
    config = tiny(progress=True, steps=2, final_eval_batches=0)
    trained = train(config, **ONE)
    err = capsys.readouterr().err.splitlines()
    said = dict(line.split("  ", 1) for line in err[: err.index("starting from scratch")])
    said = {name: text.strip() for name, text in said.items()}
    corpus, model = trained.run.corpus, trained.run.model
    count = sum(x.size for x in jax.tree.leaves(trained.params))
    assert said["parameters"] == f"{count:,}" and "2 layers x 32" in said["model"]
    assert f"vocabulary {model.vocab_size}" in said["model"] and "257 ids, 1." in said["tokenizer"]
    sizes = [len(part) for part in (corpus.train, corpus.valid)]
    counts = [part.num_documents for part in (corpus.train, corpus.valid)]
    held = f"{counts[1]} ({sizes[1]:,} tokens, {sizes[1] / sum(sizes):.1%}) held out"
    want = f"'{config.data}': {counts[0]} documents ({sizes[0]:,} tokens) to train on, {held}"
    assert said["data"] == want
    epochs = 2 * 8 * 16 / sizes[0]
    assert said["steps"] == f"2 of 8 x 16 tokens: 256 tokens, {epochs:.2g} epochs"
    assert said["precision"] == "float32: float32 weights, float32 products"
    assert said["optimizer"].startswith("adamw, learning rate 0.01 (cosine to 0.001, 2 steps of warmup)")
    assert ", weight decay 0.1" in said["optimizer"]
    adam = dataclasses.replace(trained.run.config, optim=dataclasses.replace(config.optim, name="adam"))
    assert "weight decay" not in about(adam, corpus)["optimizer"]
    shorter = dataclasses.replace(trained.run.config, steps=1)
    assert "2 steps of warmup, more than the run has)" in about(shorter, corpus)["optimizer"]
    assert any(line.startswith("the last evaluation reads all that is held out: ") for line in err)


@pytest.mark.parametrize("text, said", [
    ([{"text": "a document"}, {"text": "b document"}, {"text": "c, a longer one"}] * 2, "3 documents are"),
    ([{"prompt": "1", "completion": f"{n % 3}"} for n in range(9)], "6 examples are copies of others, and"),
    ([{"text": f"{n} document"} for n in range(4)], None),
])  # fmt: skip
def test_copies_are_told(tiny, tmp_path, text, said):
    config = tiny(data=write_rows(tmp_path / "a.jsonl", text), seq_len=8)
    told = about_data(config, data.prepare(config.data, "bytes", seq_len=8))
    assert said in told if said else "are copies" not in told


def test_one_document_that_is_cut_and_held_out_text_of_its_own_are_told(tiny, tmp_path):
    (tmp_path / "a.txt").write_text("a" * 100)
    (tmp_path / "b.txt").write_text("b" * 30)
    config = tiny(data=str(tmp_path / "a.txt"), seq_len=8)
    cut = data.prepare(config.data, "bytes", seq_len=8)
    assert about_data(config, cut) == f"'{config.data}': 91 tokens to train on, 11 (10.8%) held out"
    config = dataclasses.replace(config, valid_data=str(tmp_path / "b.txt"))
    own = data.prepare(config.data, "bytes", seq_len=8, valid_source=config.valid_data)
    told = about_data(config, own)
    assert told.endswith(
        f"1 document (101 tokens) to train on, 1 of '{config.valid_data}' (31 tokens) held out"
    )
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=257))
    assert "given in Python" in about(config, own, "given in Python")["optimizer"]


def test_the_last_evaluation_reads_all_and_is_kept_beside_the_others(tiny, monkeypatch):
    trained = train(tiny(final_eval_batches=0), **ONE)
    rows = read_metrics(trained.run.config.out)
    everything = evaluate(trained.run, trained.params)
    assert trained.evaluation == everything and rows[-1]["final_tokens"] == everything["tokens"]
    part = evaluate(trained.run, trained.params, max_batches=2)
    assert rows[-2]["heldout_loss"] == pytest.approx(part["loss"]) and part["tokens"] < everything["tokens"]


def test_held_out_text_of_its_own_is_what_a_run_is_scored_on_and_resumed_with(tiny, tmp_path, text_folder):
    held = tmp_path / "held.txt"
    held.write_text("do ordain and establish this constitution for these united states " * 3)
    config = tiny(valid_data=str(held), final_eval_batches=0)
    trained = train(config, **ONE)
    assert trained.evaluation["tokens"] == len(held.read_bytes())  # each byte and the end, but for the first
    assert trained.run.corpus.train.num_documents == 10
    held.write_text("other text, of which nothing was held out when this run began, and so it is refused")
    with pytest.raises(UserError, match="the held-out text of"):
        train(
            dataclasses.replace(
                config, steps=5, optim=dataclasses.replace(config.optim, schedule="constant")
            ),
            **ONE,
        )


def test_a_model_writes_while_it_is_trained_what_it_would_write_then(tiny, capsys):
    config = tiny(sample_every=3, eval_every=100)
    trained = train(config, **ONE)
    said = [line for line in capsys.readouterr().out.split("step ") if " writes: " in line]
    assert [line.split(" ")[0] for line in said] == ["3", "4"]
    key = jax.random.fold_in(jax.random.key(config.seed), 4)
    [text] = generate_text(
        trained.run.model, trained.params, trained.run.corpus.tokenizer, [""], max_new_tokens=TOKENS,
        sampling=SamplingConfig(temperature=0.8), key=key,
    )  # fmt: skip
    assert said[1].removeprefix("4 writes: ").removesuffix("\n") == text


def test_of_examples_the_answer_to_a_held_out_prompt_is_shown(tiny, tmp_path, monkeypatch):
    rows = [{"prompt": f"{n}+1=", "completion": f"{n + 1}"} for n in range(30)]
    config = tiny(data=write_rows(tmp_path / "sums.jsonl", rows), steps=1)
    run = train(config, **ONE).run
    printed = []
    monkeypatch.setattr(samples.tqdm, "write", printed.append)
    samples.print_samples(run)(7, run.init(jax.random.key(0)).params)
    first = run.corpus.tokenizer.decode(run.corpus.valid.document(0)).partition("=")[0]
    assert printed[0].startswith(f"step 7 writes: {first}=")


@pytest.mark.slow
def test_an_adapter_writes_as_merged(tiny, tmp_path, monkeypatch):
    """What is trained alone is no model: a sample sees what an evaluation sees."""
    base = tiny(out=str(tmp_path / "base"))
    train(base, **ONE)
    lora = dataclasses.replace(base.lora, rank=2)
    config = tiny(start=base.out, lora=lora, out=str(tmp_path / "lora"), sample_every=4)
    printed = []
    monkeypatch.setattr(samples.tqdm, "write", lambda text, **_: printed.append(text))
    train(config, **ONE)
    model, params, tokenizer = load_run(config.out)
    key = jax.random.fold_in(jax.random.key(config.seed), 4)
    [text] = generate_text(model, params, tokenizer, [""], max_new_tokens=TOKENS,
                           sampling=SamplingConfig(temperature=0.8), key=key)  # fmt: skip
    assert [line for line in printed if " writes: " in line] == [f"step 4 writes: {text}"]


def test_the_config_of_a_folder_begins_the_same_run(tiny, tmp_path):
    config = tiny()
    first = train(config, **ONE)
    told = read_config(config.out)
    assert told == first.run.config
    again = train(dataclasses.replace(told, out=str(tmp_path / "again")), **ONE)
    jax.tree.map(np.testing.assert_array_equal, again.params, first.params)
    assert Path(told.out, "config.json").is_file()
