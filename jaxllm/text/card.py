"""The README.md that goes with an exported model: what it is, what it was trained on, how to use it."""

import json
import os
from pathlib import Path
from typing import Any, Literal

from jaxllm.text.load import is_run
from jaxllm.train.checkpoint import Checkpoints
from jaxllm.train.folder import run_folder
from jaxllm.train.writers import heldout_curve


def model_card(
    source: str, which: Literal["latest", "best"] = "latest", *, adapter: bool = False
) -> str:
    """Return the model card of a model that is exported, Markdown with the front matter that the hub reads.

    Names of data and models are given without the folders that they lie in.

    Args:
      source: the folder of a training run, or another model.
      which: the run's checkpoint.
      adapter: of its adapter alone, for peft.
    """
    saved, step, loss = _saved(source, which) if is_run(source) else ({}, 0, None)
    base = source if not saved else saved.get("start")
    task, auto = _kind(saved.get("model", {}))
    front = {"library_name": "peft" if adapter else "transformers"} | ({"pipeline_tag": task} if task else {})
    is_local = base is None or Path(base).exists() or os.path.isabs(base)
    if not is_local and not base.startswith("pypi:"):  # a name of the hub
        front["base_model"] = base
    front["tags"] = ["jaxllm"] + ["lora"] * adapter
    lines = ["---", *(f"{name}: {json.dumps(value)}" for name, value in front.items()), "---", ""]
    lines += [f"# {Path(source).name}", ""]
    if not saved:
        return "\n".join([*lines, f"Written by jaxllm from {_name(base)}, whose terms go with it.", ""])
    lines += [_what(saved, base, adapter), ""]
    optim = saved["optim"]
    length = f"x {saved['seq_len']} tokens" if "seq_len" in saved else "texts"
    unit = "label" if saved["model"].get("labels") else "token"
    rows = {
        "data": _name(saved["data"]) if "data" in saved else None,
        "steps": f"{step} of {saved['batch_size']} {length}",
        "optimizer": f"{optim['name']}, learning rate {optim['learning_rate']:g}, {optim['schedule']}",
        "precision": saved["precision"],
        "held-out loss": None if loss is None else f"{loss:.4f} nats a {unit}",
    }
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items() if value)]
    use = f'{auto}.from_pretrained("THIS_FOLDER")'
    if adapter:
        place = _name(base) if base is None or _name(base) == base else f"PATH_TO/{_name(base)}"
        first = ""
        if base is not None and base.startswith("pypi:"):  # which transformers cannot read
            place, first = "base", f"# jaxllm convert {base} base\n"
        use = f"from peft import PeftModel\nfrom transformers import {auto}\n\n{first}"
        use += f'model = {auto}.from_pretrained("{place}")\nPeftModel.from_pretrained(model, "THIS_FOLDER")'
    return "\n".join([*lines, "", "```python", use, "```", ""])


def _kind(model: dict[str, Any]) -> tuple[str | None, str]:
    """Return (the hub's name of what a model is for, the class of transformers that reads it)."""
    if model.get("architecture") == "encoder_decoder":
        return "text2text-generation", "AutoModelForSeq2SeqLM"
    return {
        "text_labels": ("text-classification", "AutoModelForSequenceClassification"),
        "token_labels": ("token-classification", "AutoModelForTokenClassification"),
    }.get(model.get("head", "tokens"), ("text-generation", "AutoModelForCausalLM"))


def _saved(source: str, which: str) -> tuple[dict[str, Any], int, float | None]:
    """Return (the config that a run's checkpoint remembers, its step, its held-out loss)."""
    folder = run_folder(source)
    kept = Checkpoints(folder / "checkpoints")
    step, saved, _ = kept.newest_whole(kept.config, first=kept.best() if which == "best" else None)
    losses = [loss for at, loss in heldout_curve(folder) if at <= step]
    return saved, step, losses[-1] if losses else None


def _what(saved: dict[str, Any], base: str | None, adapter: bool) -> str:
    lora, of = saved.get("lora", {}), f" of {_name(base)}" if base else ""
    if lora.get("rank"):
        kind = "A LoRA adapter" if adapter else "A model merged with a LoRA adapter"
        return f"{kind}{of}: rank {lora['rank']}, alpha {lora['alpha']:g}, beside {lora['targets']}."
    if saved.get("train_only"):
        return f"A model{of}, of which {saved['train_only']} was trained."
    return f"A model fine-tuned from {_name(base)}." if base else "A model trained from scratch."


def _name(source: str | None) -> str:
    """Return what to call a model or data: a name of the hub whole, a path by its last part."""
    if source is None:
        return "a model given in Python"
    return Path(source).name if os.path.isabs(source) or Path(source).exists() else source
