"""The commands that train a labeller, say its labels and write it for transformers."""

import csv
import json

import jax
import pytest

from jaxllm import models
from jaxllm.cli import convert, label, train_labels, train_punctuator
from jaxllm.errors import UserError
from jaxllm.pretrained import save_pretrained
from jaxllm.text import Labeller
from tests.text.test_labels import texts, word_pieces


@pytest.mark.slow
def test_from_a_file_of_rows_to_labels_and_a_folder_for_transformers(tmp_path, capsys):
    tokenizer = word_pieces(tmp_path / "tokenizer")
    model = models.get_preset("bert-nano", vocab_size=18, context_length=24, num_layers=1, embed_dim=32)
    save_pretrained(tmp_path / "start", model, models.init(model, jax.random.key(0)), tokenizer)
    rows, out = texts(96), str(tmp_path / "run")
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["review", "mood"])
        writer.writerows(zip(rows.texts, rows.labels, strict=True))
    columns = ["--text-column", "review", "--label-column", "mood"]
    train_labels.main([
        "--start", str(tmp_path / "start"), "--data", str(tmp_path / "rows.csv"), "--out", out, *columns,
        "--steps", "60", "--batch-size", "16", "--lora.rank", "4", "--lora.targets", "all",
        "--optim.learning-rate", "3e-3", "--optim.warmup-steps", "5", "--no-progress",
    ])  # fmt: skip
    said = capsys.readouterr().out
    assert "held-out accuracy 1.0000, macro-F1 1.0000" in said and "over 9 labels" in said
    label.main([out, "--text", "the film is fine", "--text", "a bad story"])
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == ["pos", "neg"]
    label.main([out, "--data", str(tmp_path / "rows.csv"), *columns, "--out", str(tmp_path / "said.jsonl")])
    assert "over 96 labels" in capsys.readouterr().out.splitlines()[-1]
    written = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    right = [row["label"] == label for row, label in zip(written, rows.labels, strict=True)]
    assert sum(right) >= 90 and [row["text"] for row in written] == rows.texts
    convert.main([out, str(tmp_path / "exported")])
    assert "label with: jaxllm label" in capsys.readouterr().out
    exported = Labeller.load(tmp_path / "exported").predict(rows.texts)
    assert exported == [row["label"] for row in written]
    assert "text-classification" in (tmp_path / "exported" / "README.md").read_text()
    convert.main([out, str(tmp_path / "adapter"), "--adapter"])
    theirs = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert theirs["task_type"] == "SEQ_CLS" and theirs["modules_to_save"] == ["bert.pooler", "classifier"]


@pytest.mark.parametrize("command", [train_labels, train_punctuator])
def test_flags_of_what_the_start_decides_are_refused(command, tmp_path):
    given = ["--start", "my-bert", "--data", str(tmp_path / "none.jsonl")]
    with pytest.raises(UserError, match="--model.num-layers changes nothing, since --start 'my-bert'"):
        command.main([*given, "--model.num_layers", "2"])
    with pytest.raises(UserError, match="none.jsonl"):  # these are taken, and the data is read next
        command.main([*given, "--model.dropout", "0.1", "--model.remat=full"])


def test_labels_are_checked_before_texts_are_read_and_texts_are_read_once(tmp_path, capsys, monkeypatch):
    tokenizer, calls = word_pieces(tmp_path / "tokenizer"), []
    model = models.get_preset("bert-nano", vocab_size=18, context_length=24, num_layers=1, embed_dim=32,
                              head="text_labels", labels=("neg", "pos"))  # fmt: skip
    labeller, rows = Labeller(model, models.init(model, jax.random.key(0)), tokenizer), texts(6)
    scores, found = labeller.score(rows), labeller.log_probs(rows.texts)
    monkeypatch.setattr(label.Labeller, "load", lambda *_: labeller)
    monkeypatch.setattr(labeller, "log_probs", lambda asked: calls.append(asked) or found)

    def said(labels):
        lines = [json.dumps(dict(text=text, label=own)) for text, own in zip(rows.texts, labels, strict=True)]
        (tmp_path / "rows.jsonl").write_text("\n".join(lines))
        label.main(["run", "--data", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "said.jsonl")])
        return capsys.readouterr().out.splitlines()[-1]

    with pytest.raises(UserError, match="unknown label 'positive'"):
        said([*rows.labels[:-1], "positive"])
    assert not calls
    line = said(rows.labels)
    assert f"macro-F1 {scores['macro_f1']:.4f}, loss {scores['loss']:.4f} nats" in line
    assert calls == [rows.texts]
    assert len((tmp_path / "said.jsonl").read_text().splitlines()) == 6


def test_what_is_missing_is_told(tmp_path):
    with pytest.raises(UserError, match="give --data FILE, with a text and a label"):
        train_labels.main(["--start", str(tmp_path)])
    with pytest.raises(UserError, match="give --text TEXT or --data FILE"):
        label.main([str(tmp_path)])
    for name in ("text_column", "label_column"):
        with pytest.raises(UserError, match=f"^{name} is 'a', and is of --data; leave it out"):
            label.main([str(tmp_path), "--text", "a text", f"--{name.replace('_', '-')}", "a"])
