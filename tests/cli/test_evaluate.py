"""jaxllm evaluate: what it refuses before a model is read, and what it prints."""

import json

import pytest

from jaxllm import data, models, score
from jaxllm.cli import evaluate, lm_eval
from jaxllm.errors import UserError
from jaxllm.text.load import with_dtype
from tests.models.random_params import random_params


@pytest.fixture
def tiny(monkeypatch):
    """The model that the command finds, whatever its name."""
    config = models.get_preset("gpt2-nano", vocab_size=257, embed_dim=16, num_heads=2, num_layers=1,
                               context_length=32)  # fmt: skip
    found = config, random_params(config), data.load_tokenizer("bytes")
    monkeypatch.setattr(evaluate, "load_model_and_tokenizer", lambda *_: found)
    return found


@pytest.mark.parametrize("words, message", [
    (["run"], "give --data FILE or --tasks NAMES"),
    (["run", "--data", "a.txt", "--tasks", "arc_easy"], "give --data FILE or --tasks NAMES"),
    (["run", "--data", "a.txt", "--out", ""], "out is ''; it must be the name of a file"),
    (["run", "--data", "a.txt", "--out", "."], "out is '.'; it must be the name of a file"),
    (["run", "--data", "a.txt", "--window", "0"], "window is 0"),
    (["run", "--data", "nowhere.txt"], "nowhere.txt"),
    (["run", "--data", "a.txt", "--limit", "3"], "^limit is 3, and is of --tasks; leave it out$"),
    (["run", "--data", "a.txt", "--num-fewshot", "0"], "num_fewshot is 0, and is of --tasks"),
    (["run", "--data", "a.txt", "--include-path", "b"], "include_path is 'b', and is of --tasks"),
    (["run", "--tasks", "arc_easy", "--window", "5"], "window is 5, and is of --data"),
    (["run", "--tasks", "arc_easy", "--stride", "3"], "stride is 3, and is of --data"),
    (["run", "--tasks", "arc_easy", "--show", "0"], "show is 0, and is of --data"),
    (["run", "--tasks", "arc_easy", "--text-column", "b"], "text_column is 'b', and is of --data"),
    (["run", "--tasks", ","], "tasks is ','; it must name a task"),
    (["run", "--tasks", "arc_easy", "--include-path", "nowhere"], "include_path is 'nowhere'; it must be"),
])  # fmt: skip
def test_mistakes_are_told_before_a_model_is_read(words, message, monkeypatch):
    monkeypatch.setattr(evaluate, "load_model_and_tokenizer", lambda *_: pytest.fail("a model was read"))
    with pytest.raises(UserError, match=message):
        evaluate.main(words)


def test_blank_text_is_refused_before_a_model_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "load_model_and_tokenizer", lambda *_: pytest.fail("a model was read"))
    (tmp_path / "blank.txt").write_text("\n\n\n")
    with pytest.raises(UserError, match="blank.txt' is empty: it holds only blank text"):
        evaluate.main(["run", "--data", str(tmp_path / "blank.txt")])


def test_a_model_that_is_not_there_is_told_before_the_harness_reads_its_tasks(monkeypatch):
    monkeypatch.setattr(lm_eval, "register", lambda: None)
    with pytest.raises(UserError, match="no trained model in '/nowhere/run'"):
        model = ["--model", "jaxllm", "--model_args", "dtype=float32,pretrained=/nowhere/run"]
        lm_eval.main([*model, "--tasks", "arc_easy"])


def test_the_table_holds_each_document_and_their_sum(tiny, tmp_path, capsys):
    texts, out = tmp_path / "texts", tmp_path / "scores.json"
    texts.mkdir()
    (texts / "a.txt").write_text("first | text\n<|endoftext|>\n")
    (texts / "b.txt").write_text("second, a longer one, of more than thirty-two bytes")
    evaluate.main(["run", "--data", str(texts), "--out", str(out)])
    expected = score.score_texts(*tiny, list(data.read_documents(texts)))
    total = expected[0] + expected[1]
    printed, written = capsys.readouterr().out, json.loads(out.read_text())
    assert written["total"]["log_prob"] == pytest.approx(total.log_prob, abs=1e-4)
    assert [one["tokens"] for one in written["documents"]] == [one.tokens for one in expected]
    assert "first \\| text" in printed
    assert f"| all 2 documents | {total.tokens} | {total.loss:.4f} |" in printed


def test_a_run_is_scored_in_the_type_that_is_asked_for(tiny, tmp_path):
    """As generate draws from it; without --dtype in its own."""
    (tmp_path / "a.txt").write_text("a text of some letters")
    low = with_dtype(*tiny, "bfloat16")
    for flags, model in (([], tiny), (["--dtype", "bfloat16"], low)):
        evaluate.main(["run", "--data", str(tmp_path / "a.txt"), "--out", str(tmp_path / "out.json"), *flags])
        [one] = score.score_texts(*model, ["a text of some letters"])
        written = json.loads((tmp_path / "out.json").read_text())
        assert written["total"]["log_prob"] == pytest.approx(one.log_prob, abs=1e-6)


def test_a_single_document_is_all_there_is(tiny, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("one text")
    evaluate.main(["run", "--data", str(tmp_path / "a.txt")])
    one, printed = score.score_texts(*tiny, ["one text"])[0], capsys.readouterr().out.splitlines()
    assert len(printed) == 3 and printed[2].startswith(f"| one text | {one.tokens} | {one.loss:.4f} |")
    evaluate.main(["run", "--data", str(tmp_path / "a.txt"), "--show", "0"])
    assert capsys.readouterr().out.splitlines()[2].startswith(f"| document | {one.tokens} |")
