"""Adapters in the format of Hugging Face's peft: adapter_config.json and adapter_model.safetensors."""

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.adapt.lora import Lora, LoraConfig
from jaxllm.adapt.names import flat, layer_matrices, name_params, nested
from jaxllm.atomic import new_folder
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.errors import UserError, brief
from jaxllm.json_file import read_json
from jaxllm.models import EncoderDecoderConfig, LanguageModel, shapes
from jaxllm.models.families import FAMILIES
from jaxllm.models.huggingface import (
    full_name,
    param_from_state_dict,
    state_dict_from_params,
    tensor_names,
    tensor_shapes,
)
from jaxllm.models.huggingface_config import config_to_huggingface
from jaxllm.pretrained.safetensors_file import open_safetensors, write_safetensors
from jaxllm.pretrained.save import check_new, save_tokenizer

CONFIG, WEIGHTS, ABOUT = "adapter_config.json", "adapter_model.safetensors", "jaxllm_base.json"
_PREFIX = "base_model.model."
# What else of peft's config changes the numbers, and the values that change nothing.
_PLAIN = {
    "bias": ("none", None), "use_dora": (False, None),
    "trainable_token_indices": (None, [], {}), "lora_bias": (False, None), "target_parameters": (None, []),
    "layer_replication": (None, []), "megatron_config": (None,), "use_qalora": (False, None),
}  # fmt: skip


def save_adapter(
    folder: str | os.PathLike,
    lora: Lora,
    adapter: dict,
    *,
    base: str = "",
    about: dict[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
    card: str | None = None,
) -> None:
    """Write an adapter that peft loads onto the transformers model of the same weights.

    GPT-2 keeps query, key and value in one matrix: theirs become one adapter of the ranks' sum, whose B is
    zero where none of ours is. What is trained whole (`lora.also`, a head of labels) is in modules_to_save.

    Args:
      folder: a new or empty folder.
      lora: the adapter's view.
      adapter: its parameters.
      base: what peft should call the model.
      about: what `read_about` returns, to know the model by.
      tokenizer: saved beside it, as peft's own trainers do; None: it is the model's.
      card: what README.md says; None: there is none.

    Raises:
      UserError: no Hugging Face family can hold the model; something is in the folder, or it is a mount point
        or the current folder; half of a module of theirs is trained whole.
    """
    folder = check_new(folder)
    family = config_to_huggingface(lora.model)["model_type"]
    config, table, prefix = lora.config, FAMILIES[family].places(lora.model), _prefix(lora.model, family)
    places = {path: table["/".join(path)] for path, _ in lora.matrices.values()}
    tensors, patterns = {}, {"rank_pattern": {}, "alpha_pattern": {}}
    for name in sorted({place.name for place in places.values()}):
        parts = {places[path].part: path for path in places if places[path].name == name}
        rows = _rows(lora.model, family, name)
        module = name.removesuffix(".weight")
        if len(parts) > 1:
            count = len(parts)
            alpha = config.alpha * (math.sqrt(count) if config.rslora else count)
            patterns["rank_pattern"][_suffix(module)] = config.rank * count
            patterns["alpha_pattern"][_suffix(module)] = alpha
        pairs = {part: _pair(adapter, path) for part, path in sorted(parts.items(), key=str)}
        for layer in range(len(next(iter(pairs.values()))[0])):
            A_RI = np.concatenate([A[layer].reshape(-1, config.rank).T for A, _ in pairs.values()])
            B_OR = np.zeros((sum(map(len, rows.values())), len(A_RI)), np.float32)
            for number, (part, (_, B)) in enumerate(pairs.items()):
                columns = slice(number * config.rank, (number + 1) * config.rank)
                B_OR[rows[part], columns] = B[layer].reshape(config.rank, -1).T
            for letter, tensor in (("A", A_RI), ("B", B_OR)):
                tensors[f"{prefix(module.format(layer=layer))}.lora_{letter}.weight"] = tensor
    whole = {path: np.asarray(x, np.float32) for path, x in flat(adapter).items() if path in lora.whole}
    whole = state_dict_from_params(lora.model, family, nested(whole))
    names = {name for name, _ in tensor_shapes(lora.model, family)}  # a tied head is not there twice
    whole = {name: tensor for name, tensor in whole.items() if name in names}
    tensors |= {prefix(name): tensor for name, tensor in whole.items()}
    theirs = {
        "peft_type": "LORA", "task_type": task_type(lora.model), "base_model_name_or_path": base,
        "r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout,
        "use_rslora": config.rslora, "bias": "none", "inference_mode": True,
        "target_modules": _targets(lora.model, family, {place.name for place in places.values()}),
        "modules_to_save": _whole_modules(lora.model, family, whole),
        "fan_in_fan_out": not next(iter(places.values())).output_first, **patterns,
    }  # fmt: skip
    with new_folder(folder) as partial:
        write_safetensors(partial / WEIGHTS, tensors)
        for name, content in ((CONFIG, theirs), (ABOUT, about)):
            if content is not None:
                (partial / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        if tokenizer is not None:
            save_tokenizer(partial, tokenizer)
        if card is not None:
            (partial / "README.md").write_text(card, encoding="utf-8")


def load_adapter(folder: str | os.PathLike, model: LanguageModel) -> tuple[Lora, dict]:
    """Return (the view, the adapter's parameters) of a folder that peft or `save_adapter` wrote.

    Ranks that differ are padded with zeros to the largest, and scales that differ are put into B.

    Args:
      folder: with adapter_config.json and adapter_model.safetensors.
      model: the one that it is for.

    Raises:
      UserError: a file is missing or damaged, an adapter of another kind, or of another model.
    """
    folder = Path(os.path.expanduser(folder))
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(
            f"no adapter in '{folder}': expected {CONFIG} and {WEIGHTS}, as peft writes them, or the --out "
            "folder of a run with --lora.rank"
        )
    theirs = _read_config(folder / CONFIG)
    stored = {name: tensor.read() for name, tensor in open_safetensors(folder / WEIGHTS).items()}
    family = config_to_huggingface(model)["model_type"]
    whole, stored = _whole(stored, model, family, folder)
    found = _by_module(stored, family, folder)
    ranks = [len(A) for A, _ in found.values()]
    config = dict(alpha=float(theirs["lora_alpha"]), rslora=bool(theirs.get("use_rslora")))
    config |= dict(rank=max(ranks), dropout=float(theirs.get("lora_dropout") or 0.0))
    scale = LoraConfig(**config).scale
    leaves, chosen, used, sizes = {}, [], set(), flat(shapes(model))
    table = FAMILIES[family].places(model)
    for target, (path, names) in layer_matrices(model).items():
        place, size = table["/".join(path)], sizes[path].shape
        module, inner = place.name.removesuffix(".weight"), len(names.inputs)
        inputs, outputs = size[1 : 1 + inner], size[1 + inner :]
        A = np.zeros((size[0], *inputs, max(ranks)), np.float32)
        B = np.zeros((size[0], max(ranks), *outputs), np.float32)
        for layer in range(size[0]):
            name = module.format(layer=layer)
            if name not in found:
                continue
            down, up = found[name]
            rank, rows = len(down), _rows(model, family, place.name)
            expected = (rank, math.prod(inputs)), (sum(map(len, rows.values())), rank)
            if (down.shape, up.shape) != expected:
                raise UserError(
                    f"the adapter in '{folder}' is of another model: for '{name}' it has shapes {down.shape} "
                    f"and {up.shape}, and this model takes {expected[0]} and {expected[1]}"
                )
            up = up[rows[place.part]] * (_scale(theirs, name, rank) / scale)
            A[layer, ..., :rank] = down.T.reshape(*inputs, rank)
            B[layer, :rank] = up.T.reshape(rank, *outputs)
            used.add(name)
        if any(module.format(layer=layer) in used for layer in range(size[0])):
            chosen.append(target)
            leaves |= {(*path, "A"): A, (*path, "B"): B}
    for name in found.keys() - used:
        raise UserError(
            f"the adapter in '{folder}' is of another model: it changes '{name}', which is no matrix of this "
            f"{family} model's {model.num_layers} layers"
        )
    also = name_params(model, whole) if whole else None
    return Lora(model, LoraConfig(targets=",".join(chosen), also=also, **config)), nested(leaves | whole)


def read_about(folder: str | os.PathLike) -> dict[str, Any] | None:
    """Return what `save_adapter` was told of the model; None where peft wrote the folder."""
    path = Path(os.path.expanduser(folder)) / ABOUT
    return read_json(path) if path.is_file() else None


def task_type(model: LanguageModel) -> str | None:
    """Return what peft calls a model's task: it decides which class of theirs wraps the model."""
    if isinstance(model, EncoderDecoderConfig):
        return "SEQ_2_SEQ_LM"
    if getattr(model, "causal", True) and not model.labels:
        return "CAUSAL_LM"
    kinds = {"text_labels": "SEQ_CLS", "token_labels": "TOKEN_CLS", "tokens": "FEATURE_EXTRACTION"}
    return kinds.get(model.head)


def _prefix(model: LanguageModel, family: str):
    """Return a function: a name of the whole model -> the name in an adapter of it."""
    # A model without a head is their base model, whose names have no prefix.
    extra = FAMILIES[family].base_prefix if task_type(model) == "FEATURE_EXTRACTION" else ""
    return lambda name: _PREFIX + name.removeprefix(extra)


def _targets(model: LanguageModel, family: str, chosen: set[str]) -> list[str]:
    """Return the modules with an adapter by the ends of their names; by the whole, where others end so."""
    table = FAMILIES[family].places(model)
    others = {table["/".join(path)].name for path, _ in layer_matrices(model).values()} - chosen
    ends = {_suffix(name.removesuffix(".weight")) for name in others}
    found = set()
    for path, _ in layer_matrices(model).values():
        module = table["/".join(path)].name.removesuffix(".weight")
        if f"{module}.weight" in chosen and _suffix(module) not in ends:
            found.add(_suffix(module))
        elif f"{module}.weight" in chosen:
            names = tensor_names(model, family, "/".join(path))
            found |= {name.removesuffix(".weight") for name in names}
    return sorted(found)


def _whole_modules(model: LanguageModel, family: str, whole: Mapping[str, np.ndarray]) -> list[str] | None:
    """Return the names of the modules whose tensors are all trained whole, the largest that there are.

    Raises:
      UserError: one has a tensor that is not.
    """
    others = [name for name, _ in tensor_shapes(model, family) if name not in whole]
    found = set()
    for name in whole:
        parts = name.split(".")
        above = [".".join(parts[:end]) for end in range(1, len(parts))]
        modules = [module for module in above if not any(x.startswith(f"{module}.") for x in others)]
        if not modules:
            other = next(x for x in others if x.startswith(f"{above[-1]}."))
            raise UserError(
                f"peft keeps whole modules, and lora.also trains only a part of '{above[-1]}', without "
                f"'{other}'; name that too, or write the merged model"
            )
        found.add(_prefix(model, family)(f"{modules[0]}.").removeprefix(_PREFIX).removesuffix("."))
    return sorted(found) or None


def _whole(stored: Mapping[str, np.ndarray], model: LanguageModel, family: str, folder: Path):
    """Return ({path: a parameter that is trained whole}, the tensors of matrices' adapters)."""
    others = {name: x for name, x in stored.items() if ".lora_" not in name}
    full = {full_name(family, name.removeprefix(_PREFIX)): x for name, x in others.items()}
    whole, used = {}, set()
    for path in flat(shapes(model)) if full else ():
        names = tensor_names(model, family, "/".join(path))
        if set(names) <= full.keys():
            whole[path] = np.asarray(param_from_state_dict(model, family, "/".join(path), full), np.float32)
            used |= set(names)
    for name in full.keys() - used:
        raise UserError(
            f"the adapter in '{folder}' is of another model: it replaces {brief(name)}, which this {family} "
            "model does not have, or has with others in one parameter"
        )
    return whole, {name: x for name, x in stored.items() if name not in others}


def _pair(adapter: dict, path) -> tuple[np.ndarray, np.ndarray]:
    leaves = flat(adapter)
    return tuple(np.asarray(leaves[(*path, letter)], np.float32) for letter in "AB")


def _rows(model: LanguageModel, family: str, name: str) -> dict[int | None, np.ndarray]:
    """Return {part: its rows} of the matrices of ours that one tensor of theirs [out, in] holds."""
    sizes, rows, table = flat(shapes(model)), {}, FAMILIES[family].places(model)
    for path, names in layer_matrices(model).values():
        place, outputs = table["/".join(path)], sizes[path].shape[1 + len(names.inputs) :]
        if place.name == name and place.part is None:
            rows[None] = np.arange(math.prod(outputs))
        elif place.name == name:
            heads = outputs[0] if place.by_head else 1
            whole = np.arange(place.parts * math.prod(outputs)).reshape(heads, place.parts, -1)
            rows[place.part] = whole[:, place.part].reshape(-1)
    return rows


def _suffix(module: str) -> str:
    return ".".join(module.split(".")[-2:])


def _by_module(stored: Mapping[str, np.ndarray], family: str, folder: Path) -> dict[str, tuple]:
    """Return {module: (A [R, in], B [out, R])}, float32."""
    halves: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in stored.items():
        module, dot, letter = name.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".lora_")
        if not dot or letter not in ("A", "B") or not name.endswith(".weight") or tensor.ndim != 2:
            raise UserError(
                f"'{folder / WEIGHTS}' holds the tensor {brief(name)} of shape {tensor.shape}, which is no A "
                "or B of a linear layer; merge the adapter with peft (merge_and_unload) instead"
            )
        if not np.isfinite(tensor).all():
            raise UserError(
                f"the tensor {brief(name)} of '{folder / WEIGHTS}' holds numbers that are not finite"
            )
        halves.setdefault(full_name(family, module), {})[letter] = np.asarray(tensor, np.float32)
    for module, pair in halves.items():
        if len(pair) < 2:
            raise UserError(
                f"'{folder / WEIGHTS}' has only one of A and B of '{module}'; the file is damaged"
            )
    if not halves:
        raise UserError(f"'{folder / WEIGHTS}' holds no tensor; the file is damaged")
    return {module: (pair["A"], pair["B"]) for module, pair in halves.items()}


def _read_config(path: Path) -> dict[str, Any]:
    theirs = read_json(path)
    if theirs.get("peft_type") != "LORA":
        raise UserError(f"'{path}' is of the kind {brief(theirs.get('peft_type'))}; only LORA is read here")
    for name, plain in _PLAIN.items():
        if theirs.get(name) not in plain:
            raise UserError(
                f"'{path}' has {name}={brief(theirs[name])}, which is not read here; merge the adapter with "
                "peft (merge_and_unload) instead"
            )
    for name in ("r", "lora_alpha"):
        if type(theirs.get(name)) not in (int, float) or not 0 < theirs[name] < 1e9:
            raise UserError(f"'{path}' has {name}={brief(theirs.get(name))}; it must be a number above 0")
    return theirs


def _scale(theirs: Mapping[str, Any], module: str, rank: int) -> float:
    """Return what peft multiplies a module's product by."""
    alpha = theirs["lora_alpha"]
    for pattern, value in (theirs.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    return alpha / (math.sqrt(rank) if theirs.get("use_rslora") else rank)
