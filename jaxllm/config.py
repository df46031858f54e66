"""Configs: frozen dataclasses whose fields are checked against their declared types and ranges.

A field says what it may hold where it is declared; values from a command line, a JSON file or Python all pass
the same check, so that nothing later meets a NaN, a fraction of a step or a seed that is cut to 32 bits.
"""

import dataclasses
import functools
import math
import numbers
import operator
import os
import types
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from jaxllm.errors import UserError, brief, unknown

_LARGEST, _SMALLEST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
_INT32 = 2**31 - 1


@dataclass(frozen=True)
class Range:
    """The numbers that a field may hold, its ends included; what a device holds in 32 bits if not said.

    A float is finite, and zero or one that float32 does not round to zero, whatever the range.
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf  # a lower end that is not included
    below: float = math.inf
    or_value: float | None = None  # one more, with a meaning of its own


class _UserPath:
    """Marks a path: a leading ~ that the shell left alone is expanded."""


Count = Annotated[int, Range(1)]
CountOrZero = Annotated[int, Range(0)]
Size = Annotated[int, Range(1, 2**28)]  # of an axis; a larger one is a mistake, and its products overflow
Bytes = Annotated[int, Range(0, 2**63 - 1)]
Seed = Annotated[int, Range(0, 2**32 - 1)]  # jax cuts seeds to 32 bits: larger ones would silently collide
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
UserPath = Annotated[str, _UserPath]

AnyConfig = TypeVar("AnyConfig")


class Config:
    """The base of every config: checks its fields when it is made, and puts them into their declared types.

    Lists become tuples, numpy's numbers Python's, and a path's ~ the home folder. Its repr shows what differs
    from the defaults.

    Raises:
      UserError: naming the field, its value and what it may hold.

    Examples:
      >>> @dataclass(frozen=True)
      ... class Walk(Config):
      ...     steps: Count = 1
      ...     pace: Positive = 1.5
      >>> Walk(steps=np.int64(3))
      Walk(steps=3)
      >>> Walk(pace=math.nan)
      Traceback (most recent call last):
      jaxllm.errors.UserError: pace is nan; it must be a finite number
    """

    _prefix = ""  # of the fields' names in messages, where a config is part of another: "optim."

    @classmethod
    def kind_of(cls, values: dict[str, Any]) -> type:
        """Return the class that plain values are of: this one, or one that extends it and that they name."""
        del values
        return cls

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.__repr__ = Config.__repr__  # dataclass writes none where the class has one

    @property
    def derived(self) -> dict[str, Any]:
        """What fields that are None become: from the others, where the config is made."""
        return {}

    def __repr__(self) -> str:
        derived, shown = self.derived, []
        for field in dataclasses.fields(self):
            value, default = getattr(self, field.name), field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            if value != derived.get(field.name, default):
                shown.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def __post_init__(self):
        for name, read in _readers(type(self)):
            value = getattr(self, name)
            checked = _read(read, self._prefix + name, value)
            if checked is not value:
                object.__setattr__(self, name, checked)

    def refuse_set(self, names: Collection[str], of: str) -> None:
        """Refuse fields that are not as by default, where nothing would read them.

        Args:
          names: of the fields.
          of: what they are of, for the message.

        Raises:
          UserError: naming the first, and its value.
        """
        for name in names:
            value = getattr(self, name)
            if value != getattr(type(self), name):
                raise UserError(f"{self._prefix}{name} is {brief(value)}, and is of {of}; leave it out")


def from_plain(kind: type[AnyConfig], values: Any, source: str) -> AnyConfig:
    """Return the config that a JSON object describes; a field that is not in it has its default.

    Args:
      kind: a subclass of Config.
      values: field to value; nested configs as objects, infinities as the texts "inf" and "-inf".
      source: where the values come from, for messages.

    Raises:
      UserError: not an object, a field that is not known or missing, or a value that it may not hold.
    """
    if not isinstance(values, dict):
        raise UserError(f"{source} holds {brief(values)} where an object of fields was expected")
    kind = kind.kind_of(values)
    hints, made = get_type_hints(kind), {}
    kinds = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    for name, value in values.items():
        if name not in kinds:
            raise unknown(f"field in {source}:", name, kinds)
        nested = [one for one in (kinds[name], *get_args(kinds[name])) if dataclasses.is_dataclass(one)]
        if nested and get_origin(kinds[name]) is tuple and isinstance(value, list | tuple):
            value = tuple(from_plain(nested[0], one, f"{source}: {name}") for one in value)
        elif nested and value is not None:
            value = from_plain(nested[0], value, f"{source}: {name}")
        elif value in ("inf", "-inf") and float in (kinds[name], *get_args(kinds[name])):
            value = float(value)
        made[name] = value
    for field in dataclasses.fields(kind):
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and field.name not in made:
            raise UserError(f"{source} has no field '{field.name}', which is needed")
    try:
        return kind(**made)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def check(name: str, value: Any, kind: Any) -> Any:
    """Return a value in the type of a field that is declared so.

    Args:
      name: for messages.
      value: anything.
      kind: a type as a config declares it, such as Count or Fraction | None.

    Raises:
      UserError: the value is not of that kind.

    Examples:
      >>> check("vocab_size", "12", Size)
      Traceback (most recent call last):
      jaxllm.errors.UserError: vocab_size is '12'; it must be a whole number
    """
    return _read(_reader(kind), name, value)


def fits(value: Any, kind: Any) -> bool:
    """Say whether a value is of a kind.

    Examples:
      >>> fits(3, Count), fits(True, Count), fits(0, Count)
      (True, False, False)
    """
    try:
        _reader(kind)(value)
    except (_Misfit, UserError):
        return False
    return True


class _Misfit(Exception):
    """A value that does not fit; says what would."""

    def __init__(self, expected: str, *, right_type: bool = False, names: Collection[str] = ()):
        super().__init__(expected)
        self.expected, self.right_type, self.names = expected, right_type, names
        self.within: tuple = ()  # the element of a list that does not fit


def _read(read: Callable, name: str, value: Any) -> Any:
    try:
        return read(value)
    except _Misfit as misfit:
        what = misfit.within[0] if misfit.within else value
        if misfit.names and isinstance(what, str):
            raise unknown(name, what, misfit.names) from None
        holds = f"holds {brief(what)}; each" if misfit.within else f"is {brief(what)}; it"
        raise UserError(f"{name} {holds} must be {misfit.expected}") from None


@functools.cache
def _readers(kind: type) -> tuple[tuple[str, Callable], ...]:
    hints = get_type_hints(kind, include_extras=True)
    return tuple((field.name, _reader(hints[field.name])) for field in dataclasses.fields(kind))


def _reader(kind: Any) -> Callable[[Any], Any]:
    """Return value -> the value in its declared type, or a _Misfit."""
    marks, origin = (), get_origin(kind)
    if origin is Annotated:
        kind, *marks = get_args(kind)
        origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return functools.partial(_one_of_kinds, tuple(map(_reader, get_args(kind))))
    if origin is Literal:
        return functools.partial(_literal, get_args(kind))
    if origin is tuple:
        return _tuple_reader(get_args(kind))
    ranges = [mark for mark in marks if isinstance(mark, Range)]
    if kind is bool:
        return _bool
    if kind is int:
        bounds = ranges[0] if ranges else Range()
        most = bounds.most if bounds.most < math.inf else _INT32
        return functools.partial(_int, dataclasses.replace(bounds, most=most))
    if kind is float:
        return functools.partial(_float, ranges[0] if ranges else Range())
    if kind is str:
        return functools.partial(_text, _UserPath in marks)
    if kind is type(None):
        return functools.partial(_literal, (None,))
    return functools.partial(_instance, kind)


def _one_of_kinds(readers, value):
    misfits = []
    for read in readers:
        try:
            return read(value)
        except _Misfit as misfit:
            misfits.append(misfit)
    near = [misfit for misfit in misfits if misfit.right_type]
    if near:
        raise near[0]
    names = [name for misfit in misfits for name in misfit.names]
    raise _Misfit(" or ".join(dict.fromkeys(misfit.expected for misfit in misfits)), names=names)


def _literal(values, value):
    for one in values:
        if value is one or (type(value) is type(one) and value == one):
            return one
    shown = " or ".join("None" if one is None else repr(one) for one in values)
    raise _Misfit(shown, names=[one for one in values if isinstance(one, str)])


def _tuple_reader(kinds):
    if len(kinds) == 2 and kinds[1] is ...:
        read = _reader(kinds[0])

        def several(value):
            if not isinstance(value, list | tuple):
                raise _Misfit("a list")
            return tuple(_element(read, one) for one in value)

        return several
    readers = tuple(map(_reader, kinds))

    def so_many(value):
        if not isinstance(value, list | tuple) or len(value) != len(readers):
            raise _Misfit(f"a list of {len(readers)}")
        return tuple(_element(read, one) for read, one in zip(readers, value, strict=True))

    return so_many


def _element(read, value):
    try:
        return read(value)
    except _Misfit as misfit:
        misfit.within, misfit.right_type = misfit.within or (value,), True
        raise


def _bool(value):
    if not isinstance(value, bool | np.bool_):
        raise _Misfit("true or false")
    return bool(value)


def _int(bounds, value):
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        value = operator.index(value)
    except TypeError:
        raise _Misfit("a whole number") from None
    return _within(bounds, value, "a whole number")


def _float(bounds, value):
    if not isinstance(value, numbers.Real) or isinstance(value, bool | np.bool_):
        raise _Misfit("a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if number == bounds.or_value:
        return number
    if not math.isfinite(number):
        raise _Misfit("a finite number", right_type=True)
    if abs(number) > _LARGEST or 0 < abs(number) < _SMALLEST:
        raise _Misfit("a number that float32 holds, from 1.2e-38 to 3.4e38 or 0", right_type=True)
    number = _within(bounds, number, "a number")
    return value if type(value) is float else number


def _within(bounds: Range, number, kind: str):
    if number == bounds.or_value:
        return number
    if number < bounds.least:
        expected = f"of at least {_shown(bounds.least)}"
    elif number <= bounds.above:
        expected = f"above {_shown(bounds.above)}"
    elif number > bounds.most:
        expected = f"of at most {_shown(bounds.most)}"
    elif number >= bounds.below:
        expected = f"below {_shown(bounds.below)}"
    else:
        return number
    also = "" if bounds.or_value is None else f", or {_shown(bounds.or_value)}"
    raise _Misfit(f"{kind} {expected}{also}", right_type=True)


def _shown(number) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def _text(is_path, value):
    if not isinstance(value, str):
        raise _Misfit("a text")
    try:
        value.encode()
    except UnicodeEncodeError:  # bytes of a command line that are not UTF-8
        raise _Misfit("a text in UTF-8", right_type=True) from None
    if "\0" in value:
        raise _Misfit("a text without the character 0", right_type=True)
    if not is_path:
        return value
    if len(value.encode()) >= 4096 or max(len(part.encode()) for part in value.split("/")) > 255:
        raise _Misfit("a path whose names the system can hold, of at most 255 bytes", right_type=True)
    return os.path.expanduser(value)


def _instance(kind, value):
    if kind is Any or not isinstance(kind, type) or isinstance(value, kind):
        return value
    raise _Misfit(f"a {kind.__name__}")
