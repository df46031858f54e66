"""Command lines from frozen dataclasses: presets, nested overrides, clear errors."""

import ast
import contextlib
import dataclasses
import difflib
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import tyro

from jaxllm.errors import UserError, brief, unknown

Config = TypeVar("Config")


def parse(
    config_class: type[Config],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    presets: Mapping[str, Callable[[], Config]] | None = None,
    default_preset: str | None = None,
    listed: Callable[[Config], bool] = lambda _: True,
    hints: Mapping[str, str] = {},
) -> tuple[Config, str | None]:
    """Return (config, name of its preset) from a command line.

    `--preset NAME` chooses the values to start from; every other flag is a field, nested ones with
    dots (`--model.num-layers 6`). `--help` shows the values of the preset that is named, and lists those
    for which `listed` is true. `hints` say of options that other programs have what to write here.

    Raises:
      UserError: an unknown preset or field (with a hint, or the closest known one), or a value that does not
        fit.
      SystemExit: after --help.
    """
    argv, preset = take(list(argv), "--preset") if presets is not None else (list(argv), None)
    preset = default_preset if preset is None else preset
    default, description = None, description or ""  # python -OO keeps no docstrings
    if presets is not None:
        if preset not in presets:
            raise unknown("preset", preset, presets)
        default = presets[preset]()
        if "--help" in argv or "-h" in argv:  # the only reader of this
            names = ", ".join(name for name, make in presets.items() if listed(make()))
            description += f"\n\n--preset NAME sets the values to start from: {names}."
        description += f" Shown below: {preset}."
    kwargs = {} if default is None else {"default": default}
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            config, rest = tyro.cli(
                config_class, args=argv, prog=prog, description=description,
                return_unknown_args=True, **kwargs,
            )  # fmt: skip
    except SystemExit as exit:
        if not exit.code:
            raise
        raise _complaint(_first_sentence(complaint.getvalue())) from None
    if rest:
        raise _unknown_flag(rest[0], config, hints)
    return config, preset


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> None:
    """Run a command; print bad input as one sentence and exit with code 2.

    Exceptions with an `exit_code` (an interrupted run, a loss that is not finite) are printed the
    same way and exit with that. So is what the system says of a file (no permission, a name too long).
    Where nobody reads the output any more (`jaxllm ... | head`) the command ends without a word.
    """
    with contextlib.suppress(AttributeError, ValueError):  # no stdout, or not a file
        sys.stdout.reconfigure(errors="backslashreplace")  # a text in letters that the terminal does not know
    try:
        main(sys.argv[1:] if argv is None else argv)
        return sys.stdout and sys.stdout.flush()
    except UserError as error:
        said, code = f"error: {error}", 2
    except BrokenPipeError:
        said, code = "", 128 + 13
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
    except KeyboardInterrupt:
        said, code = "interrupted", 130
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            said, code = f"error: {error.strerror}: {brief(error.filename, 200)}", 2
        elif hasattr(error, "exit_code"):
            said, code = f"{error}", error.exit_code
        elif _among_others():
            said, code = traceback.format_exc(), 1
        else:
            raise
    if _among_others():
        from jaxllm.parallel import leave

        leave(said, code)
    if said:
        print(said, file=sys.stderr)
    sys.exit(code)


def _among_others() -> bool:
    """Return whether this process has joined others; a command that never imported jax has not."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def take(argv: Sequence[str], flag: str) -> tuple[list[str], str | None]:
    """Remove a flag and its value, in either form; return what is left and the last value given."""
    rest, value, words = [], None, iter(argv)
    for word in words:
        if word == flag:
            value = next(words, "")
        elif word.startswith(f"{flag}="):
            value = word.partition("=")[2]
        else:
            rest.append(word)
    return rest, value


def _first_sentence(box: str) -> str:
    """Return the message in the box that tyro draws, without its frame and its help."""
    lines = [line.strip("│╭╮╰╯ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    message = []
    for line in lines[1:]:
        if line and not line.strip("─-"):  # - where the terminal has no other line
            if message:
                break
            continue
        message.append(line)
    return re.sub(r"^Error parsing (?=\w+: \w+[=. ])\w+: ", "", " ".join(message).strip()) or box


def _complaint(sentence: str) -> UserError:
    """Return tyro's sentence as an error; of a name that is none of the known ones with the closest."""
    match = re.search(r"invalid choice '(.*)' for argument '--(.*)'. Expected one of (\(.*\))", sentence)
    with contextlib.suppress(ValueError, SyntaxError):  # another version of tyro's, another sentence
        if match:
            return unknown(match[2].replace("-", "_"), match[1], map(str, ast.literal_eval(match[3])))
    return UserError(sentence)


def _unknown_flag(flag: str, config: Config, hints: Mapping[str, str]) -> UserError:
    if not flag.startswith("--"):
        return UserError(f"unexpected word '{flag}'; options start with --, see --help")
    name = flag.partition("=")[0]
    model, field = getattr(config, "model", None), name.removeprefix("--model.")
    if field != name and _is_of_another(model, field):
        return UserError(f"a model of architecture {model.architecture} has no '{field}'; leave out {name}")
    flags, hint = _flags(config), hints.get(name.removeprefix("--").replace("_", "-").lower())
    named = re.findall(r"--[a-z][a-z.-]*[a-z]", hint or "")
    if hint is None or (named and not set(named) & set(flags)):  # of a command that has no such option
        close = difflib.get_close_matches(name.replace("_", "-"), flags, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'?" if close else "see --help for all of them"
    return UserError(f"unknown option '{name}'; {hint}")


def _is_of_another(model, field: str) -> bool:
    """Return whether models of another architecture have a field."""
    from jaxllm.models import LanguageModel  # not before: a command may need none

    kinds = LanguageModel.__subclasses__() if isinstance(model, LanguageModel) else []
    return any(field.replace("-", "_") in kind.__dataclass_fields__ for kind in kinds)


def _flags(config: Config, prefix: str = "--") -> list[str]:
    """Return the flags of a dataclass: a dot between a nested one and its fields."""
    flags = []
    for field in dataclasses.fields(config):
        name, value = prefix + field.name.replace("_", "-"), getattr(config, field.name)
        flags += _flags(value, f"{name}.") if dataclasses.is_dataclass(value) else [name]
    return flags
