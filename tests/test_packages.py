"""What a package offers is what it lists: for `help`, for type checkers and for `from package import *`."""

import ast
import importlib
import inspect
import pydoc
import re
import tomllib
import types
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FOLDERS = [*(ROOT / "jaxllm").glob("*/__init__.py"), *(ROOT / "kernels/jaxllm_kernels").glob("*/__init__.py")]
PACKAGES = sorted(".".join(path.parent.relative_to(ROOT).parts).removeprefix("kernels.") for path in FOLDERS)


def offered(package) -> set[str]:
    """Return the names that the package's file imports to hand them on."""
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    names = {alias.asname or alias.name for node in imports for alias in node.names}
    return {name for name in names if not isinstance(getattr(package, name), types.ModuleType)}


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_lists_what_it_offers_and_help_shows_it(name):
    package = importlib.import_module(name)
    if name == "jaxllm.cli":  # a command, not a library
        return
    assert offered(package) <= set(package.__all__), "add them to __all__"
    assert len(set(package.__all__)) == len(package.__all__)
    shown = pydoc.plain(pydoc.render_doc(package))
    for each in package.__all__:
        assert getattr(package, each) is not None and each in shown, each


@pytest.mark.parametrize("name", [name for name in PACKAGES if name != "jaxllm.cli"])
def test_help_says_on_one_screen_what_to_start_with(name):
    package = importlib.import_module(name)
    lines = package.__doc__.strip().splitlines()
    assert len(lines) <= 35 and lines[0].endswith((".", ","))
    if name.startswith("jaxllm."):
        start = package.__doc__.split("Start with ", 1)[1]
        assert re.search(r"`(\w+)", start)[1] in package.__all__


# Their further arguments are fields of a config, or values whose names are the caller's own.
FREE = {"get_preset", "plain_run", "cached_result", "estimate_prior"}


@pytest.mark.parametrize("name", [name for name in PACKAGES if name != "jaxllm.cli"])
def test_functions_name_their_arguments(name):
    package = importlib.import_module(name)
    functions = [each for each in package.__all__ if inspect.isfunction(getattr(package, each))]
    for each in set(functions) - FREE:
        parameters = inspect.signature(getattr(package, each)).parameters.values()
        assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters), each


def test_packages_come_with_the_library(monkeypatch):
    import jaxllm

    assert jaxllm.models.get_preset is importlib.import_module("jaxllm.models").get_preset
    with pytest.raises(AttributeError, match="has no attribute 'modles'"):
        getattr(jaxllm, "mod" + "les")
    rows = re.findall(r"^    (\w+)  .*?(?:  (\w+)  |$)", jaxllm.__doc__, re.MULTILINE)
    named = {name for row in rows for name in row if name}
    packages = {name.removeprefix("jaxllm.") for name in PACKAGES if name.startswith("jaxllm.")}
    assert named - {"report"} == packages - {"cli"}


def test_type_checkers_find_the_types():
    for folder in (ROOT / "jaxllm", ROOT / "kernels" / "jaxllm_kernels"):
        assert (folder / "py.typed").exists()
    assert '"*" = ["py.typed"]' in (ROOT / "pyproject.toml").read_text()  # in the wheel, too


def test_the_extra_all_has_what_users_need_and_neither_rivals_nor_compilers():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    named = re.fullmatch(r"jaxllm\[(.*)\]", extras.pop("all")[0])[1].split(",")
    assert set(named) == extras.keys() - {"test", "torch", "parity", "tpu-targets", "cuda-targets"}
    assert not any("torch" in one or one.startswith("jax[") for name in named for one in extras[name])


def test_the_citation_names_this_version_and_the_paper_of_every_experiment():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert yaml.safe_load(citation)["version"] == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    cited = {reference["url"] for reference in yaml.safe_load(citation)["references"]}
    asked = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    assert len(cited) == 18 and set(re.findall(r"https://arxiv.org/abs/[\d.]+", asked)) <= cited
