"""The same answers as lm-evaluation-harness's own backend and as minicons, on the same weights."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest

from jaxllm import data, score
from jaxllm.pretrained import from_pretrained

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SENTENCES = [
    "The keys to the cabinet are on the table.",
    "Uncharacteristically, naïve critics disagreed about the film",
    "What the ship needs is more sails",
]


@pytest.fixture(scope="module")
def rival(tmp_path_factory):
    """A random GPT-2 of transformers with its tokenizer, and the folder of both."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=2, n_head=4, n_embd=32, n_positions=48, vocab_size=50257, initializer_range=0.2
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=data.load_tokenizer("gpt2").backend,
        bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>",
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    return model, tokenizer, folder


@pytest.fixture(scope="module")
def ours(rival):
    config, params, tokenizer = from_pretrained(rival[2])
    return config, params, tokenizer or data.load_tokenizer("gpt2")


def test_the_harness_gets_the_answers_of_its_own_backend(rival, ours):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from jaxllm.score.harness import HarnessModel

    model, tokenizer, _ = rival
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, device="cpu", max_length=48)
    mine = HarnessModel(*ours, tokens_per_batch=256)

    def ask(kind, arguments):
        requests = [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]
        return [getattr(one, kind)(requests, disable_tqdm=True) for one in (theirs, mine)]

    draw = random.Random(0)
    words = " ".join(SENTENCES).split()
    text = lambda n: " ".join(draw.choices(words, k=n))  # noqa: E731
    contexts = [text(n) for n in (3, 8, 20, 60)] + ["", "ends in a space "]  # 60 words exceed the context
    pairs = [(context, " " + text(n)) for context in contexts for n in (1, 2, 5)]
    expected, got = ask("loglikelihood", pairs)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]
    np.testing.assert_allclose([a for a, _ in got], [a for a, _ in expected], atol=1e-3)

    expected, got = ask("loglikelihood_rolling", [(text(n),) for n in (1, 10, 70)])
    np.testing.assert_allclose(got, expected, atol=1e-3)

    asked = {"until": ["."], "max_gen_toks": 12, "do_sample": False}
    expected, got = ask("generate_until", [(text(n), asked) for n in (2, 9, 60)])
    assert got == expected


def test_bos_stands_where_the_harness_s_own_backend_puts_it(rival, ours, tmp_path):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from tokenizers.processors import TemplateProcessing

    from jaxllm.score.harness import HarnessModel

    end = "<|endoftext|>"
    backend = data.load_tokenizer("gpt2").backend
    backend.post_processor = TemplateProcessing(single=[end, "$A"], special_tokens=[(end, 50256)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=end, eos_token=end, pad_token=end
    )
    tokenizer.save_pretrained(tmp_path)
    theirs = HFLM(pretrained=rival[0], tokenizer=tokenizer, batch_size=4, device="cpu", max_length=48)
    mine = HarnessModel(*ours[:2], data.load_tokenizer(tmp_path), tokens_per_batch=256)

    def ask(kind, arguments):
        requests = [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]
        return [getattr(one, kind)(requests, disable_tqdm=True) for one in (theirs, mine)]

    for text in SENTENCES:
        assert mine.tok_encode(text) == theirs.tok_encode(text) and mine.tok_encode(text)[0] == 50256
    contexts = ["The keys", "ends in a space ", end + "The keys", "", " ".join(SENTENCES * 4)]
    expected, got = ask("loglikelihood", [(context, " more sails") for context in contexts])
    np.testing.assert_allclose([a for a, _ in got], [a for a, _ in expected], atol=1e-3)
    asked = {"until": ["."], "max_gen_toks": 12, "do_sample": False}
    contexts = ["The keys", "ends in a space ", contexts[-1]]  # theirs looks for BOS in a batch's first alone
    expected, got = ask("generate_until", [(context, asked) for context in contexts])
    assert got == expected


@pytest.mark.parametrize("boundary", ["sum", "corrected"])
def test_word_surprisals_are_those_of_minicons(rival, ours, boundary):
    minicons = pytest.importorskip("minicons.scorer")
    model, tokenizer, _ = rival
    scorer = minicons.IncrementalLMScorer(model, "cpu", tokenizer=tokenizer)
    expected = scorer.word_score_tokenized(
        SENTENCES, str.split, bow_correction=boundary == "corrected", bos_token=True, surprisal=True,
        base_two=True,
    )  # fmt: skip
    got = score.word_surprisals(*ours, [s.split() for s in SENTENCES], boundary=boundary)
    for row, mine in zip(expected, got, strict=True):
        np.testing.assert_allclose(mine, [value for _, value in row], atol=1e-3)


TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {questions}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""


@pytest.fixture
def task(tmp_path, monkeypatch):
    """A folder with a task of two questions."""
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    questions, choices = tmp_path / "local_keys.jsonl", [" keys", " more sails"]
    rows = [{"question": q, "choices": choices, "answer": 0} for q in ("Where are the", "It has no")]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "local_keys.yaml").write_text(TASK.format(name="local_keys", questions=questions))
    return tmp_path


def run_jaxllm(*words):
    return subprocess.run([sys.executable, "-m", "jaxllm.cli", *words], capture_output=True, text=True)


def test_lm_evals_own_command_line_takes_the_model(rival, task):
    words = ["--tasks", "local_keys", "--include_path", str(task)]
    source, out = f"pretrained={rival[2]}", ["--output_path", str(task / "out")]
    done = run_jaxllm("lm_eval", "--model", "jaxllm", "--model_args", source, *words, *out)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(next((task / "out").rglob("results*.json")).read_text())
    done = run_jaxllm("evaluate", str(rival[2]), *words, "--out", str(task / "scores.json"))
    assert done.returncode == 0, done.stderr
    ours = json.loads((task / "scores.json").read_text())
    assert ours["local_keys"]["acc,none"] == theirs["results"]["local_keys"]["acc,none"]


@pytest.mark.parametrize("words, message", [
    (["evaluate", "MODEL", "--tasks", "local_kyes"], "unknown task 'local_kyes'; did you mean 'local_keys'?"),
    (["lm_eval", "--model", "jaxllm", "--tasks", "local_keys"], "needs --model_args pretrained=SOURCE"),
    (["lm_eval", "--model", "jaxllm", "--model_args", "pretraind=x", "--tasks", "local_keys"],
     "unknown model argument 'pretraind'; did you mean 'pretrained'?"),
])  # fmt: skip
def test_what_a_task_gets_wrong_is_one_sentence(rival, task, words, message):
    words = [str(rival[2]) if word == "MODEL" else word for word in words]
    done = run_jaxllm(*words, "--include_path", str(task))
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and last.startswith("error: ") and message in last, done.stderr[-2000:]
