"""What the fast suite may run: experiments, notebooks, processes and interpreted kernels are slow."""

import ast
import functools
import itertools
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = Path(__file__).parent
CI = (ROOT / ".ci" / "run").read_text()
MARKERS = ("slow", "torch", "targets", "gpu")  # that the default run deselects

# What the fast suite keeps of each kind: a test, or the tests of a file that share one fixture. Processes
# here take a second or two; whatever else runs one is slow, or has its reason to stand here.
FAST = {
    "experiment": {
        "experiments/test_gpu_benchmarks.py::test_forecasts_are_the_compilers",  # nothing is compiled
        # The combination that it runs is a stand-in.
        "experiments/test_composition.py::test_a_report_holds_what_combinations_found_and_they_are_not_run_again",
    },
    "process": {
        "cli/test_surroundings.py::test_a_reader_that_left_ends_the_command_without_a_word",
        "data/test_batches.py::test_the_interpreter_exits_while_iterators_read_ahead",
        "data/test_corpus.py::test_processes_that_prepare_at_once_agree_and_leave_one_cache",
        "data/test_corpus.py::test_a_file_larger_than_the_memory_allowed_streams",
        "data/test_corpus.py::test_a_full_disk_is_told_and_leaves_nothing",
        "data/test_embedded.py::test_importing_the_package_imports_nothing_heavy",
        "data/test_tfds.py::test_a_local_dataset_is_read_without_tensorflow",
        "data/test_tokenizers.py::test_bpe_training_is_the_same_in_another_process",
        "test_host_memory.py::test_memory_freed_by_one_step_is_not_faulted_in_by_the_next",
        "test_house.py::test_importing_the_library_takes_under_a_second_beyond_jax",
        "test_settings.py::test_settings_change_no_number",
        "train/test_folder.py",  # which imports nothing
        "text/test_many_hosts.py::test_a_folder_that_is_not_shared_is_refused_by_all",
        "text/test_many_hosts.py::test_an_abort_inside_jax_ends_with_a_sentence",
    },
    "interpreter": {  # every case of these tests is fast
        "kernels/test_attention_pallas.py::test_huge_scores_stay_finite",
        "kernels/test_attention_pallas.py::test_hidden_blocks_of_keys_are_not_read",
        "kernels/test_attention_transforms.py::test_the_reference_returns_the_same",
        "kernels/test_linear_cross_entropy_implementations.py::test_token_log_probs_and_their_gradients",
        "kernels/test_linear_cross_entropy_implementations.py::test_token_log_probs_have_second_derivatives",
        "kernels/test_linear_cross_entropy_implementations.py::test_under_vmap_scan_and_remat",
    },
    "notebook": set(),
}


@functools.cache
def module(path):
    """Return (its imports, {name: the node that defines it}) of a file's top level."""
    imports, defined = {}, {}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports |= {alias.asname or alias.name.partition(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imports |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            defined[node.name] = node
        elif isinstance(node, ast.Assign):
            defined |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
    return imports, defined


@functools.cache  # here and below: many tests use the same helpers
def names(node):
    """Return the names that a piece of code reads, and the fixtures that a function asks for."""
    arguments = node.args.args if isinstance(node, ast.FunctionDef) else ()
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} | {a.arg for a in arguments}


def reached(path, nodes):
    """Yield (file, node) of some code and of all that it uses, fixtures of its folders included."""
    files = [path, *(p / "conftest.py" for p in path.parents if (p / "conftest.py").exists() and p >= TESTS)]
    waiting, seen = [(path, node) for node in nodes], set()
    while waiting:
        file, node = waiting.pop()
        yield file, node
        for name in names(node) - seen:
            home = next((f for f in (file, *files) if name in module(f)[1]), None)
            if home:
                seen.add(name)
                waiting.append((home, module(home)[1][name]))


@functools.cache
def kinds(file, node):
    """Return what is expensive in a piece of code."""
    return set(_kinds(module(file)[0], node))


def _kinds(imports, node):
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            package = imports.get(part.id, "")
            if package.startswith("nbclient"):
                yield "notebook"
            if package.startswith("subprocess") or package.endswith("local_processes"):
                yield "process"
        if isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute) and part.func.attr == "main":
            if any(imports.get(name, "").startswith("experiments") for name in names(part.func)):
                yield "experiment"
        if isinstance(part, ast.keyword) and part.arg == "interpret":
            if not (isinstance(part.value, ast.Constant) and not part.value.value):
                yield "interpreter"


def marks(path, test):
    """Return the code that marks a test, its parameters or its whole module."""
    everywhere = [module(path)[1][name] for name in ("pytestmark",) if name in module(path)[1]]
    return [node for _, node in reached(path, test.decorator_list + everywhere)]


unparsed = functools.cache(ast.unparse)


def marked(path, test, *markers):
    code = "\n".join(unparsed(node) for node in marks(path, test))
    return any(f"mark.{marker}" in code for marker in markers)


@functools.cache
def every_test():
    return [
        (path, node)
        for path in sorted(TESTS.rglob("test_*.py"))
        for name, node in module(path)[1].items()
        if name.startswith("test_")
    ]


@functools.cache
def expensive():
    """Return {kind: {"file::test": (path, node)}}."""
    found = {kind: {} for kind in FAST}
    for path, test in every_test():
        body = ast.FunctionDef(name=test.name, args=test.args, body=test.body, decorator_list=[])
        for kind in {kind for code in reached(path, [body]) for kind in kinds(*code)}:
            found[kind][f"{path.relative_to(TESTS).as_posix()}::{test.name}"] = path, test
    return found


@pytest.mark.parametrize("kind", FAST)
def test_what_is_expensive_is_slow_but_for_one_case_of_a_kind(kind):
    found, kept = expensive()[kind], FAST[kind]
    assert len(found) >= 4  # the search finds what there is
    fast = [name for name, (path, test) in found.items() if not marked(path, test, *MARKERS)]
    new = [name for name in fast if not {name, name.partition("::")[0]} & kept]
    assert not new, f"runs {kind}: mark it slow, or say in FAST why it is not: {new}"
    gone = {name for name in kept if not any(each.startswith(name) for each in found)}
    assert not gone, f"no {kind} any more: {gone}"


def test_no_smoke_test_is_slow():
    """Neither as a whole nor in a case of its own."""
    for path, test in every_test():
        whole = "\n".join(ast.unparse(d) for d in test.decorator_list if isinstance(d, ast.Attribute))
        cases = [ast.unparse(part) for node in marks(path, test) for part in ast.walk(node)
                 if isinstance(part, ast.Call) and ast.unparse(part.func) == "pytest.param"]  # fmt: skip
        both = any("mark.smoke" in case and "mark.slow" in case for case in cases)
        both |= "mark.smoke" in whole and marked(path, test, "slow")
        both |= "mark.slow" in whole and marked(path, test, "smoke")
        assert not both, f"{path.relative_to(TESTS)}::{test.name} is smoke and slow"


def test_each_marker_is_left_out_by_default_and_run_by_ci():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    [default] = re.findall(r"-m '([^']+)'", options["addopts"])
    assert "<!-- tests -->" in CI  # README's line, which names no marker
    asked = [a or b for a, b in re.findall(r'-m (?:"([^"]+)"|(\w+))$', CI, re.MULTILINE)]
    assert asked
    for flags in itertools.product((False, True), repeat=len(MARKERS)):
        test = dict(zip(MARKERS, flags, strict=True), smoke=False)
        assert eval(default, {}, test) == (not any(flags)), test
        if not test["gpu"]:  # which the machine of .ci/run has not
            assert any(eval(expression, {}, test) for expression in (default, *asked)), test


@pytest.mark.parametrize("marker", ["slow", "torch", "targets"])
def test_the_file_of_a_test_says_its_marker(marker):
    """By which .ci/run finds the files that a stage imports."""
    assert "marked slow" in CI and 'marked "torch|targets"' in CI
    tests = ((path, test) for path, test in every_test() if marked(path, test, marker))
    assert not {path.name for path, _ in tests if not re.search(rf"mark\.{marker}\b", path.read_text())}
