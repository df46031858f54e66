"""Names that users give to parts of a model."""

from collections.abc import Collection

from jaxllm.axis_names import AxisNames, is_names
from jaxllm.errors import UserError, unknown
from jaxllm.models import LanguageModel, axes

Path = tuple[str, ...]  # of a parameter in the tree: ("layers", "attn", "query")


def flat(tree: dict, path: Path = ()) -> dict[Path, object]:
    """Return {path: leaf} of a nested dict."""
    found = {}
    for name, value in tree.items():
        here = (*path, name)
        found |= flat(value, here) if isinstance(value, dict) else {here: value}
    return found


def nested(leaves: dict[Path, object]) -> dict:
    """Return the nested dict that `flat` was made of."""
    tree: dict = {}
    for (*parents, name), value in leaves.items():
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def split_names(text: str) -> list[str]:
    """Return the names in a text with commas between them.

    Examples:
      >>> split_names("query, value,")
      ['query', 'value']
    """
    return [name.strip() for name in text.split(",") if name.strip()]


def layer_matrices(config: LanguageModel) -> dict[str, tuple[Path, AxisNames]]:
    """Return the weight matrices of a model's layers by name: (where they lie, their axes).

    Those of an encoder beside the decoder are encoder_query ..., and of attention to it cross_query ...

    Examples:
      >>> from jaxllm.models import get_preset
      >>> list(layer_matrices(get_preset("llama-nano")))
      ['key', 'out', 'query', 'value', 'mlp_gate', 'mlp_in', 'mlp_out']
    """
    found = {}
    for path, names in sorted(flat(axes(config)).items()):
        if "layers" in path and is_names(names) and names.inputs:
            *above, block, last = path
            name = last if block == "attn" else f"{block}_{last}"
            found["_".join([*above[: above.index("layers")], name])] = path, names
    return found


def choose_matrices(config: LanguageModel, targets: str) -> dict[str, tuple[Path, AxisNames]]:
    """Return those of `layer_matrices` that a text names; "all" names every one.

    Raises:
      UserError: no name, or one that the model's layers do not have.
    """
    known, chosen = layer_matrices(config), split_names(targets)
    if not chosen:
        raise UserError(f"lora.targets is {targets!r}; name some of all, {', '.join(known)}")
    for name in chosen:
        if name not in known and name != "all":
            raise unknown("lora.targets name", name, ["all", *known])
    return {name: place for name, place in known.items() if name in chosen or "all" in chosen}


def choose_params(config: LanguageModel, names: str, field: str = "train_only") -> set[Path]:
    """Return the paths of the parameters that a text, the value of a field, names.

    A name is any part of a path (embed, layers, attn, mlp_norm, query_bias, head ...) or a matrix of
    `layer_matrices` (query, mlp_in ...).

    Raises:
      UserError: no name, or one that the model does not have.

    Examples:
      >>> from jaxllm.models import get_preset
      >>> sorted(choose_params(get_preset("llama-nano"), "final_norm,mlp_out"))
      [('final_norm', 'scale'), ('layers', 'mlp', 'out')]
    """
    known, chosen = _named_params(config), split_names(names)
    if not chosen:
        raise UserError(f"{field} is {names!r}; name some of {', '.join(known)}")
    for name in chosen:
        if name not in known:
            raise unknown(f"{field} name", name, known)
    return set().union(*(known[name] for name in chosen))


def name_params(config: LanguageModel, paths: Collection[Path]) -> str:
    """Return names for which `choose_params` returns these paths.

    Raises:
      UserError: there are none.

    Examples:
      >>> from jaxllm.models import get_preset
      >>> name_params(get_preset("llama-nano"), [("final_norm", "scale"), ("layers", "mlp", "out")])
      'final_norm,mlp_out'
    """
    left, chosen = set(paths), []
    known = _named_params(config)
    for name in sorted(known, key=lambda name: -len(known[name])):
        if known[name] <= set(paths) and known[name] & left:
            chosen.append(name)
            left -= known[name]
    if left:
        raise UserError(f"no name of parameters stands for '{'/'.join(min(left))}' alone")
    return ",".join(chosen)


def _named_params(config: LanguageModel) -> dict[str, set[Path]]:
    paths = set(flat(axes(config)))
    known = {part: {path for path in paths if part in path} for path in sorted(paths) for part in path}
    return known | {name: {path} for name, (path, _) in layer_matrices(config).items()}
