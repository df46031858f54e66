"""One check for a kind of field: what any config, from any source, may hold."""

import ast
import dataclasses
import importlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import optax
import pytest

from jaxllm.config import Config, Count, Fraction, Range, Seed, Size, UserPath, check, from_plain
from jaxllm.errors import UserError
from jaxllm.generate import SamplingConfig
from jaxllm.models import ModelConfig, VocabGroups, get_preset
from jaxllm.optim import OptimConfig, make_optimizer
from jaxllm.parallel import MeshConfig
from jaxllm.quantize.schemes import Scheme
from jaxllm.subnetwork import Rates, Schedule, Stage
from jaxllm.targets.candidates import Search
from jaxllm.text import TrainConfig
from jaxllm.tiles.config import TilesConfig, TileSizes
from jaxllm.train import to_dict

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Inner(Config):
    rate: Fraction = 0.5
    _prefix = "inner."


@dataclass(frozen=True)
class Outer(Config):
    steps: Count = 1
    seed: Seed = 0
    logit: Annotated[float, Range(or_value=-math.inf)] | Literal["learned"] = 0.0
    name: Literal["gelu", "silu"] = "gelu"
    size: Size | None = None
    sizes: tuple[Size, ...] = ()
    pair: tuple[str, int] = ("a", 1)
    flag: bool = False
    folder: UserPath = "runs"
    inner: Inner = Inner()


GOOD = [
    (dict(steps=np.int32(7)), 7),
    (dict(logit=-math.inf), -math.inf),
    (dict(logit=2), 2.0),
    (dict(logit=np.float32(0.5)), 0.5),
    (dict(logit="learned"), "learned"),
    (dict(size=None), None),
    (dict(sizes=[1, np.int64(2)]), (1, 2)),
    (dict(pair=["b", 2]), ("b", 2)),
    (dict(seed=2**32 - 1), 2**32 - 1),
    (dict(flag=np.True_), True),
]


@pytest.mark.parametrize("values, kept", GOOD)
def test_values_are_kept_in_their_declared_type(values, kept):
    [name] = values
    value = getattr(Outer(**values), name)
    assert value == kept and type(value) is type(kept)
    hash(Outer(**values))


BAD = [
    (dict(steps=0), "steps is 0; it must be a whole number of at least 1"),
    (dict(steps=2.0), "steps is 2.0; it must be a whole number"),
    (dict(steps=True), "steps is True; it must be a whole number"),
    (dict(steps="7"), "steps is '7'; it must be a whole number"),
    (dict(steps=2**31), "steps is 2147483648; it must be a whole number of at most 2147483647"),
    (dict(steps=10**400), "of at most 2147483647"),
    (dict(seed=2**32), "seed is 4294967296; it must be a whole number of at most 4294967295"),
    (dict(seed=-1), "at least 0"),
    (dict(logit=math.nan), "logit is nan; it must be a finite number"),
    (dict(logit=math.inf), "logit is inf; it must be a finite number"),
    (dict(logit=10**400), "it must be a finite number"),
    (dict(logit=1e39), "a number that float32 holds"),
    (dict(logit=1e-40), "a number that float32 holds"),
    (dict(logit="lerned"), "unknown logit 'lerned'; did you mean 'learned'?"),
    (dict(logit=None), "logit is None; it must be a number or 'learned'"),
    (dict(name="gelo"), "unknown name 'gelo'; did you mean 'gelu'?"),
    (dict(name=3), "name is 3; it must be 'gelu' or 'silu'"),
    (dict(size=-4), "size is -4; it must be a whole number of at least 1"),
    (dict(size=2**40), "of at most 268435456"),
    (dict(sizes=(4, 0)), "sizes holds 0; each must be a whole number of at least 1"),
    (dict(sizes="12"), "sizes is '12'; it must be a list"),
    (dict(pair=("a",)), "it must be a list of 2"),
    (dict(flag=1), "flag is 1; it must be true or false"),
    (dict(folder="a\0b"), "without the character 0"),
    (dict(folder="\udcff"), "a text in UTF-8"),
    (dict(folder="runs/" + "A" * 256), "of at most 255 bytes"),
    (dict(folder="runs/" * 1000), "a path whose names the system can hold"),
    (dict(inner={}), "it must be a Inner"),
]


def test_numbers_in_lists_are_python_s_too():
    made = Outer(sizes=(np.int64(1), 2), pair=("a", np.int64(1)))
    assert repr(made) == "Outer(sizes=(1, 2))"
    model = ModelConfig(windows=(np.int64(16), 0))
    assert repr(model.windows) == "(16, 0)" and json.loads(json.dumps(to_dict(model)))["windows"] == [16, 0]


@pytest.mark.parametrize("values, sentence", BAD)
def test_values_that_no_one_meant_are_refused(values, sentence):
    with pytest.raises(UserError) as error:
        Outer(**values)
    assert sentence in str(error.value) and len(str(error.value)) < 250


def test_a_home_folder_that_the_shell_left_alone_is_found(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert Outer(folder="~/runs").folder == "/home/ada/runs"
    assert TrainConfig(out="~/run", data="~/a.txt", tokenizer="~/t.json").out == "/home/ada/run"


LIBRARY = [ModelConfig(), OptimConfig(), TrainConfig(), SamplingConfig(), MeshConfig(), TilesConfig(),
           TileSizes(), Rates(), Search(), Scheme(8, "absmax", "tensor", None)]  # fmt: skip

DERIVED = ("vocab_size", "head_dim", "num_kv_heads", "mlp_dim")  # or open, where they are None


def numbers(config):
    for field in dataclasses.fields(config):
        if type(getattr(config, field.name)) in (int, float):
            yield field.name


@pytest.mark.parametrize("config", LIBRARY, ids=lambda config: type(config).__name__)
def test_no_number_of_the_library_s_configs_may_be_what_no_one_meant(config):
    for name in numbers(config):
        for value in (math.nan, math.inf, 1e39, 10**39, "1", None, {}, True):
            if value is None and name in DERIVED:
                continue
            with pytest.raises(UserError, match=name):
                dataclasses.replace(config, **{name: value})
        if isinstance(getattr(config, name), int):
            with pytest.raises(UserError, match=name):
                dataclasses.replace(config, **{name: 1.5})
        if name not in ("sink_logit",) and not isinstance(config, MeshConfig):
            with pytest.raises(UserError, match=name):
                dataclasses.replace(config, **{name: -1})


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: OptimConfig(warmup_steps=-5), "optim.warmup_steps is -5"),
        (lambda: OptimConfig(final_fraction=-0.1), "optim.final_fraction is -0.1"),
        (lambda: OptimConfig(final_fraction=1.5), "optim.final_fraction is 1.5"),
        (lambda: OptimConfig(decay_fraction=math.nan), "optim.decay_fraction is nan"),
        (lambda: OptimConfig(beta2=1.0), "optim.beta2 is 1.0; it must be a number below 1"),
        (lambda: SamplingConfig(temperature=1e-40), "temperature is 1e-40"),
        (lambda: SamplingConfig(temperature=math.nan), "temperature is nan"),
        (lambda: SamplingConfig(top_p=0), "top_p is 0; it must be a number above 0"),
        (lambda: MeshConfig(data=0), "mesh.data is 0; it must be a whole number of at least 1, or -1"),
        (lambda: Rates(layers=(0.5, math.nan)), "rates.layers holds nan"),
        (lambda: Schedule((Stage(math.nan, Rates()), Stage(1.0, Rates()))), "stages end at nan, 1"),
        (lambda: TrainConfig(seed=2**64), "seed is 18446744073709551616"),
        (lambda: TilesConfig(policy="dmdaz"), "did you mean 'dmda"),
        (lambda: check("ids", [1, 2.5], tuple[Count, ...]), "ids holds 2.5"),
    ],
)
def test_each_range_is_the_field_s_own(make, sentence):
    with pytest.raises(UserError) as error:
        make()
    assert sentence in str(error.value)


def test_every_config_of_the_project_is_checked():
    """A dataclass called ...Config, in the library or an experiment, is a Config."""
    unchecked = []
    for path in [*(ROOT / "jaxllm").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Config") and node.name != "Config":
                if not any(ast.unparse(base).endswith(("Config", "LanguageModel")) for base in node.bases):
                    unchecked.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert not unchecked


PLAIN = to_dict(TrainConfig(model=get_preset("gpt2-nano"), seq_len=64))


def test_a_config_comes_back_from_its_plain_values():
    groups = VocabGroups.of(np.arange(12), 4)
    model = get_preset("llama-nano", vocab_size=12, vocab_groups=groups, windows=(0,))
    for config in (TrainConfig(model=model), TrainConfig(steps=7, mesh=MeshConfig(2, 2, 1))):
        assert from_plain(TrainConfig, json.loads(json.dumps(to_dict(config))), "a file") == config


def variations(values, path=()):
    """Yield (path, value): every field of a config set to everything that it is not."""
    hostile = (None, True, -1, 0, 0.5, 2**31, 10**400, math.nan, math.inf, -math.inf, 1e-40, "", "x", "nan",
               "-inf", "\0", "\ud800", "two\nlines", "A" * 100_000, [], {}, [[]], [0] * 5, {"a": {"b": []}},
               ["x", None], "3;x;" + "A" * 50)  # fmt: skip
    for name, value in values.items():
        if isinstance(value, dict):
            yield from variations(value, (*path, name))
        for one in hostile:
            yield (*path, name), one


def test_every_variation_of_a_plan_is_read_or_refused_in_one_short_sentence():
    refused = 0
    for path, value in list(variations(PLAIN))[::3]:  # all: experiments/benchmarks/fuzz_configs.py
        tree = json.loads(json.dumps(PLAIN))
        node = tree
        for name in path[:-1]:
            node = node[name]
        node[path[-1]] = value
        try:
            read = from_plain(TrainConfig, tree, "plan.json")
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 1000, (path, value)
        else:
            # What is read can be written, hashed and read again.
            hash(read)
            assert from_plain(TrainConfig, json.loads(json.dumps(to_dict(read))), "again") == read
    assert refused > 400


@pytest.mark.parametrize("name", ["sys:path", "os:getcwd", "os.path:join", ".:x", ":x", "os:", "nowhere:x",
                                  "x y:z", "builtins:exit", "A" * 10_000 + ":x"])  # fmt: skip
def test_an_optimizer_that_is_none_is_refused(name):
    with pytest.raises(UserError, match="optim.name .*(cannot be imported|expected a function of)") as error:
        OptimConfig(name=name)
    assert len(str(error.value)) < 1000


def test_an_optimizer_that_needs_more_than_gradients_is_refused():
    with pytest.raises(UserError, match="optimizer 'lbfgs' needs more than gradients .*'value'"):
        OptimConfig(name="lbfgs")


def test_an_optimizer_s_function_has_to_return_one(monkeypatch):
    monkeypatch.setattr(optax, "my_chain", lambda learning_rate: learning_rate, raising=False)
    monkeypatch.setattr(optax, "needs_more", lambda learning_rate, radius: None, raising=False)
    with pytest.raises(UserError, match="'optax:my_chain' returned .*expected a gradient transformation"):
        make_optimizer(OptimConfig(name="optax:my_chain"), 10, {"w": ("embed",)})
    with pytest.raises(UserError, match="expected a function of some of"):
        OptimConfig(name="optax:needs_more")


@pytest.mark.parametrize("module", ["jaxllm.cli.generate", "jaxllm.cli.convert"])
def test_the_commands_configs_are_checked(module):
    name = module.rpartition(".")[2].capitalize() + "Config"
    assert issubclass(getattr(importlib.import_module(module), name), Config)
