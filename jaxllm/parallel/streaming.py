"""Update arrays that live in the host's memory with only a few of their rows on the device at a time."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxllm.parallel.memory import on_host, to_device, to_host
from jaxllm.parallel.row_rules import accumulator, equations, resolve, row_rule

BLOCK_BYTES = 2**26  # of all that is on the device for one block of rows


def streamed(update: Callable, block_bytes: int = BLOCK_BYTES) -> Callable:
    """Return the same function of arrays some of which may live in the host's memory.

    The function is traced, and what its results have in common with each array of the host is looked for:
    where a result's rows (its entries along the first axis: layers, in a stack) depend on the same rows of
    such arrays, a loop fetches a block of rows, computes it, and writes it back. All of an optax chain on
    stacked parameters is of that kind, rotations and stochastic rounding included; sums over all rows (a
    gradient's norm) become a loop of their own before. What has no rule (`row_rule`) is computed from whole
    arrays, fetched for it. Values are those of `update` itself, but for the order of sums over host arrays.

    Args:
      update: (kept, *others) -> (new kept, out): jax arrays in pytrees. New arrays of `kept` have the shapes
        and types of the old ones and take their places, in their memories; donate them.
      block_bytes: how much to fetch at once.

    Examples:
      >>> def update(moments, gradients):
      ...     return jax.tree.map(lambda m, g: 0.9 * m + g, moments, gradients), jnp.sum(gradients)
      >>> new, total = jax.jit(streamed(update))(jnp.zeros(3), jnp.ones(3))
      >>> print(new, total)  # nothing lives in the host's memory: update itself
      [1. 1. 1.] 3.0
    """

    @functools.wraps(update)
    def run(kept, *others):
        if not any(map(on_host, jax.tree.leaves((kept, others)))):
            return update(kept, *others)
        values, _ = jax.tree.flatten((kept, *others))
        on_device = jax.tree.map(_device_type, (kept, *others))
        traced, shapes = jax.make_jaxpr(update, return_shape=True)(*on_device)
        program = _Program(traced, values, block_bytes)
        olds = jax.tree.leaves(kept)
        results = program.results(traced.jaxpr.outvars, len(olds))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return run


def _device_type(x):
    return jax.typeof(x).update(memory_space=jax.memory.Space.Device)


class _Program:
    """A traced function, and what is known of its variables' values."""

    def __init__(self, traced: core.ClosedJaxpr, inputs: list, block_bytes: int):
        self.block_bytes = block_bytes
        self.jaxpr = traced.jaxpr
        self.equations, self.aliases, constants = equations(traced)
        self.producer = {var: eqn for eqn in self.equations for var in eqn.outvars}
        self.inputs = dict(zip(traced.jaxpr.invars, inputs, strict=True))
        self.known = constants | {var: x for var, x in self.inputs.items() if not on_host(x)}

    def results(self, outvars, kept: int) -> list:
        """Return all results; the first `kept` take the places of the inputs before them."""
        olds = list(self.inputs)[:kept]
        outvars = [self.resolve(var) for var in outvars]
        new: dict[int, Any] = {}
        for places in self._components(outvars[:kept]):
            rows = self._loop([outvars[i] for i in places], [olds[i] for i in places])
            new |= zip(places, rows, strict=True)
        for i, var in enumerate(outvars):
            if i in new:
                continue
            if i < kept and not isinstance(var, core.Literal) and var in self.inputs:
                new[i] = self.inputs[var]
                continue
            whole = jnp.asarray(self.whole(var))
            new[i] = to_host(whole) if i < kept and on_host(self.inputs[olds[i]]) else whole
        return [new[i] for i in range(len(outvars))]

    def resolve(self, atom):
        """Return the variable that another name stands for, or the atom itself."""
        return resolve(atom, self.aliases)

    def whole(self, atom):
        """Return the value of a variable on the device, all of it."""
        atom = self.resolve(atom)
        if isinstance(atom, core.Literal):
            return atom.val
        if atom in self.known:
            return self.known[atom]
        if atom in self.inputs:
            self.known[atom] = to_device(self.inputs[atom])
            return self.known[atom]
        # Without recursion: a chain of equations can be longer than Python's stack.
        for eqn in self._needed(atom):
            if all(var in self.known for var in eqn.outvars):
                continue
            if (combine := accumulator(eqn)) and self._streams(eqn.invars[0]):
                values = [self._reduce(eqn, combine)]
            else:
                values = self._evaluate(eqn, [self.whole(x) for x in eqn.invars])
            self.known |= dict(zip(eqn.outvars, values, strict=True))
        return self.known[atom]

    def _evaluate(self, eqn, operands) -> list:
        """Return an equation's results: those of a program that holds no other."""
        ins, outs = ([core.Var(x.aval) for x in atoms] for atoms in (eqn.invars, eqn.outvars))
        alone = eqn.replace(invars=ins, outvars=outs)
        jaxpr = self.jaxpr.replace(constvars=[], invars=ins, outvars=outs, eqns=[alone], effects=eqn.effects)
        return core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, ()))(*operands)

    def _needed(self, var) -> list:
        """Return the equations that a variable needs as a whole, in order."""
        needed, stack = set(), [var]
        while stack:
            var = self.resolve(stack.pop())
            if isinstance(var, core.Literal) or var in self.known or var not in self.producer:
                continue
            eqn = self.producer[var]
            if id(eqn) in needed:
                continue
            needed.add(id(eqn))
            if not (accumulator(eqn) and self._streams(eqn.invars[0])):
                stack += eqn.invars
        return [eqn for eqn in self.equations if id(eqn) in needed]

    def _streams(self, var) -> bool:
        """Return whether blocks of rows of a variable come from the same rows of arrays of the host."""
        var = self.resolve(var)
        return bool(var.aval.ndim) and any(on_host(self.inputs.get(x)) for x in self._leaves([var])[0])

    def _leaves(self, outvars) -> tuple[list, list, list]:
        """Return what rows of these variables are made of.

        Returns:
          (variables taken by rows, variables taken whole, the equations from there, in order).
        """
        rows, wholes, between, seen, stack = [], [], set(), set(), list(outvars)
        while stack:
            var = self.resolve(stack.pop())
            if isinstance(var, core.Literal) or var in seen:
                continue
            seen.add(var)
            rule = self._rule(var)
            if rule is None:
                rows.append(var)
                continue
            between.add(id(self.producer[var]))
            for atom, by_rows in zip(self.producer[var].invars, rule.by_rows, strict=True):
                if by_rows:
                    stack.append(atom)
                elif not isinstance(self.resolve(atom), core.Literal):
                    wholes.append(self.resolve(atom))
        return rows, wholes, [eqn for eqn in self.equations if id(eqn) in between]

    def _rule(self, var):
        if var in self.known or var not in self.producer:
            return None
        return row_rule(self.producer[var], var.aval.shape[0])

    def _components(self, outvars) -> list[list[int]]:
        """Return which results share rows of an array of the host, and so a loop."""
        groups: list[tuple[set, list[int]]] = []
        for i, var in enumerate(outvars):
            if isinstance(var, core.Literal) or not var.aval.ndim or var in self.inputs:
                continue
            length = var.aval.shape[0]
            hosts = {x for x in self._leaves([var])[0] if on_host(self.inputs.get(x))}
            if not hosts:
                continue
            mine = [group for group in groups if group[0] & {(x, length) for x in hosts}]
            merged = {(x, length) for x in hosts}.union(*(group[0] for group in mine))
            places = sorted([i, *itertools.chain(*(group[1] for group in mine))])
            groups = [group for group in groups if group not in mine] + [(merged, places)]
        return [places for _, places in groups]

    def _loop(self, outvars, olds) -> list:
        """Return variables block by block, each block written where the old array's was."""
        block, length, at_once = self._block(outvars)

        def body(start, size, carry):
            # Old rows are read from what is written to, or the compiler would have to keep a copy.
            rows = block(start, size, dict(zip(olds, carry, strict=True)))
            return [_write(old, new, start) for old, new in zip(carry, rows, strict=True)]

        carry = [self.inputs[old] for old in olds]
        return _over_blocks(body, carry, length, at_once)

    def _reduce(self, eqn, combine):
        """Return a reduction over all rows, of blocks of rows."""
        block, length, at_once = self._block([self.resolve(eqn.invars[0])])

        def body(start, size, carry):
            (part,) = self._evaluate(eqn, block(start, size))
            return part if carry is None else combine(carry, part)

        return _over_blocks(body, None, length, at_once)

    def _block(self, outvars) -> tuple[Callable, int, int]:
        """Return ((start, size, newer inputs) -> rows, how many there are, how many to take at once)."""
        length = outvars[0].aval.shape[0]
        rows, wholes, between = self._leaves(outvars)
        # Hoisted out of the loop. Variables without a row rule are computed whole, then sliced.
        wholes = {var: self.whole(var) for var in wholes}
        sources = {x: self.inputs[x] if on_host(self.inputs.get(x)) else self.whole(x) for x in rows}

        def block(start, size, latest={}):  # noqa: B006
            known = {}

            def value(atom, by_rows):
                atom = self.resolve(atom)
                if isinstance(atom, core.Literal):
                    return atom.val
                return known[atom] if by_rows else wholes[atom]

            for var, source in (sources | latest).items():
                known[var] = to_device(_rows(source, start, size))
            for eqn in between:
                rule = row_rule(eqn, length)
                operands = [value(x, by) for x, by in zip(eqn.invars, rule.by_rows, strict=True)]
                known |= dict(zip(eqn.outvars, rule.run(operands, start, size), strict=True))
            return [known[var] for var in outvars]

        return block, length, self._rows_at_once(rows, length)

    def _rows_at_once(self, fetched, length) -> int:
        sizes = [math.prod(v.aval.shape[1:]) * v.aval.dtype.itemsize for v in fetched]
        most = max(1, min(length, self.block_bytes // max(sum(sizes), 1)))
        # A divisor if there is one near: a rest is compiled apart.
        return next((n for n in range(most, most // 2, -1) if length % n == 0), most)


def _rows(x, start, size):
    return x if size == x.shape[0] else jax.lax.dynamic_slice_in_dim(x, start, size)


def _write(old, rows, start):
    rows = to_host(rows) if on_host(old) else rows
    return rows if rows.shape == old.shape else jax.lax.dynamic_update_slice_in_dim(old, rows, start, 0)


def _over_blocks(body, carry, length: int, size: int):
    """Carry through (start, size, carry) -> carry over blocks of rows, a smaller one last."""
    full, rest = divmod(length, size)
    first = 0
    if full and carry is None:  # there is no carry before the first block
        carry, first = body(0, size, None), 1
    if full - first == 1:
        carry = body(first * size, size, carry)
    elif full - first:
        carry = jax.lax.fori_loop(first, full, lambda i, carry: body(i * size, size, carry), carry)
    return body(full * size, rest, carry) if rest else carry
