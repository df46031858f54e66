"""Which operations compute a block of rows of their result from the same rows of what they take.

A row is an entry along the first axis. A rule says, for an equation of a jaxpr whose result has so many
rows, which operands it takes by rows and which whole, and computes a block.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

# One entry of the result from one of each operand; scalars and axes of length 1 are the same for all.
_ELEMENTWISE = frozenset(
    "abs add add_any and atan2 bitcast_convert_type cbrt ceil clamp clz convert_element_type copy copy_p "
    "cos cosh div eq erf erf_inv exp exp2 expm1 floor ge gt integer_pow is_finite le log log1p logistic lt "
    "max min mul ne neg nextafter not or pow reduce_precision rem round rsqrt select_n shift_left "
    "shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh "
    "xor".split()
)
_CALLS = frozenset(
    "jit pjit closed_call core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr".split()
)
_REDUCTIONS = {
    "reduce_sum": jnp.add, "reduce_max": jnp.maximum, "reduce_min": jnp.minimum,
    "reduce_and": jnp.logical_and, "reduce_or": jnp.logical_or,
}  # fmt: skip


class Rule(NamedTuple):
    """How to compute a block of rows."""

    by_rows: tuple[bool, ...]  # which operands are taken by rows
    run: Callable  # (operands, start, size) -> results


def row_rule(eqn, length: int) -> Rule | None:
    """Return the rule of an equation whose result has `length` rows; None: there is none."""
    name, out = eqn.primitive.name, eqn.outvars[0].aval
    if name in _ELEMENTWISE:
        shapes = [x.aval.shape for x in eqn.invars]
        if not all(shape == () or _stretches(shape, out.shape) for shape in shapes):
            return None
        return Rule(tuple(shape[:1] == (length,) for shape in shapes), _plain(eqn))
    if name == "sharding_constraint":  # rows are laid out as their source is
        return Rule((True,), lambda operands, start, size: operands)
    rule = _RULES.get(name)
    return rule(eqn, length) if rule is not None else None


def accumulator(eqn) -> Callable | None:
    """Return how an equation's results over blocks of rows combine, if it reduces over rows."""
    over_rows = 0 in eqn.params.get("axes", ())
    return _REDUCTIONS.get(eqn.primitive.name) if over_rows else None


def equations(traced: core.ClosedJaxpr) -> tuple[list, dict, dict]:
    """Return a program with its calls' equations in their place.

    Returns:
      (its equations in order, {variable: the one that it is another name of}, {variable: constant}).
    """
    found, aliases = [], {}
    constants = dict(zip(traced.jaxpr.constvars, traced.consts, strict=True))

    def add(jaxpr):
        for eqn in jaxpr.eqns:
            inner = _called(eqn)
            if inner is None:
                found.append(eqn)
                continue
            fresh = _renamed(inner.jaxpr)
            aliases.update(zip(fresh.invars, eqn.invars, strict=True))
            constants.update(zip(fresh.constvars, inner.consts, strict=True))
            aliases.update(zip(eqn.outvars, fresh.outvars, strict=True))
            add(fresh)

    add(traced.jaxpr)
    return found, aliases, constants


def resolve(atom, aliases: dict):
    """Return the variable that another name stands for, or the atom itself; for aliases see `equations`."""
    while not isinstance(atom, core.Literal) and atom in aliases:
        atom = aliases[atom]
    return atom


def _called(eqn) -> core.ClosedJaxpr | None:
    if eqn.primitive.name not in _CALLS:
        return None
    inner = next(eqn.params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in eqn.params)
    return inner if isinstance(inner, core.ClosedJaxpr) else core.ClosedJaxpr(inner, ())


def _renamed(jaxpr):
    """Return a jaxpr with variables of its own: one that is called twice has two of each."""
    names: dict[Any, Any] = {}

    def new(atom):
        if isinstance(atom, core.Literal):
            return atom
        if atom not in names:
            names[atom] = core.Var(atom.aval)
        return names[atom]

    def each(atoms):
        return [new(x) for x in atoms]

    eqns = [eqn.replace(invars=each(eqn.invars), outvars=each(eqn.outvars)) for eqn in jaxpr.eqns]
    return jaxpr.replace(
        constvars=each(jaxpr.constvars), invars=each(jaxpr.invars), outvars=each(jaxpr.outvars), eqns=eqns
    )


def _plain(eqn, **changed) -> Callable:
    """Return a run of the equation itself, with some parameters changed by the size of the block."""

    def run(operands, start, size):
        del start
        params = eqn.params | {name: change(size) for name, change in changed.items()}
        results = eqn.primitive.bind(*operands, **params)
        return list(results) if eqn.primitive.multiple_results else [results]

    return run


def _stretches(shape, result) -> bool:
    return len(shape) == len(result) and all(n in (1, m) for n, m in zip(shape, result, strict=True))


def _first(size: int, shape) -> tuple[int, ...]:
    return (size, *shape[1:])


def _iota(eqn, length):
    del length
    shape, axis = eqn.params["shape"], eqn.params["dimension"]

    def run(operands, start, size):
        rows = jax.lax.broadcasted_iota(eqn.params["dtype"], _first(size, shape), axis)
        return [rows + jnp.asarray(start).astype(rows.dtype) if axis == 0 else rows]

    return Rule((), run) if not eqn.invars else None


def _broadcast(eqn, length):
    if len(eqn.invars) != 1:
        return None
    operand, shape, places = eqn.invars[0].aval, eqn.params["shape"], eqn.params["broadcast_dimensions"]
    by_rows = bool(places) and places[0] == 0 and operand.shape[0] == length
    return Rule((by_rows,), _plain(eqn, shape=lambda size: _first(size, shape)))


def _reshape(eqn, length):
    sizes, operand = eqn.params["new_sizes"], eqn.invars[0].aval
    if len(eqn.invars) != 1 or eqn.params["dimensions"] is not None or not operand.ndim:
        return None
    if operand.shape[0] != length:
        return None
    return Rule((True,), _plain(eqn, new_sizes=lambda size: _first(size, sizes)))


def _transpose(eqn, length):
    del length
    return Rule((True,), _plain(eqn)) if eqn.params["permutation"][0] == 0 else None


def _reduce(eqn, length):
    del length
    return Rule((True,), _plain(eqn)) if 0 not in eqn.params["axes"] else None


def _squeeze(eqn, length):
    del length
    return Rule((True,), _plain(eqn)) if 0 not in eqn.params["dimensions"] else None


def _slice(eqn, length):
    starts, limits, strides = (eqn.params[k] for k in ("start_indices", "limit_indices", "strides"))
    if starts[0] or limits[0] != eqn.invars[0].aval.shape[0] or (strides and strides[0] != 1):
        return None
    return Rule((True,), _plain(eqn, limit_indices=lambda size: _first(size, limits)))


def _concatenate(eqn, length):
    del length
    if eqn.params["dimension"] == 0:
        return None
    return Rule((True,) * len(eqn.invars), _plain(eqn))


def _dot_general(eqn, length):
    (left, right), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    if left_batch:
        by_rows = (True, True) if (left_batch[0], right_batch[0]) == (0, 0) else None
    else:  # the result's first axis is the first that the left operand keeps
        by_rows = (True, False) if eqn.invars[0].aval.ndim and 0 not in left else None
    return Rule(by_rows, _plain(eqn)) if by_rows else None


def _cond(eqn, length):
    """A choice by platform or by value, if every program to choose from has rules for its rows."""
    by_rows = tuple(x.aval.shape[:1] == (length,) for x in eqn.invars[1:])
    programs = [_program_by_rows(branch, length, by_rows) for branch in eqn.params["branches"]]
    if None in programs:
        return None

    def run(operands, start, size):
        index, *rest = operands
        rest = [jnp.asarray(start), *rest]
        branches = (jax.make_jaxpr(functools.partial(program, size))(*rest) for program in programs)
        return list(eqn.primitive.bind(index, *rest, **eqn.params | {"branches": tuple(branches)}))

    return Rule((False, *by_rows), run)


def _program_by_rows(traced: core.ClosedJaxpr, length: int, by_rows) -> Callable | None:
    """Return (size, start, *operands) -> blocks of a program's results; None: they need other rows too."""
    eqns, aliases, constants = equations(traced)
    of_rows = dict(zip(traced.jaxpr.invars, by_rows, strict=True)) | dict.fromkeys(constants, False)

    def taken(atoms):
        resolved = (resolve(x, aliases) for x in atoms)
        return tuple(not isinstance(x, core.Literal) and of_rows[x] for x in resolved)

    rules = []
    for eqn in eqns:
        rule, shape = row_rule(eqn, length), eqn.outvars[0].aval.shape
        if rule is None or rule.by_rows != taken(eqn.invars) or shape[:1] not in ((), (length,)):
            return None
        of_rows |= dict.fromkeys(eqn.outvars, shape != ())
        rules.append(rule)
    if not all(taken(traced.jaxpr.outvars)):
        return None

    def program(size, start, *operands):
        known = constants | dict(zip(traced.jaxpr.invars, operands, strict=True))

        def value(atom):
            atom = resolve(atom, aliases)
            return atom.val if isinstance(atom, core.Literal) else known[atom]

        for eqn, rule in zip(eqns, rules, strict=True):
            results = rule.run([value(x) for x in eqn.invars], start, size)
            known |= dict(zip(eqn.outvars, results, strict=True))
        return [value(x) for x in traced.jaxpr.outvars]

    return program


_RULES = {
    "iota": _iota,
    "cond": _cond,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "slice": _slice,
    "concatenate": _concatenate,
    "dot_general": _dot_general,
} | dict.fromkeys((*_REDUCTIONS, "argmax", "argmin", "reduce_prod"), _reduce)
