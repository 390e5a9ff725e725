r"""Times of a run, and the coefficients made once for all of them.

A solver's loop visits a fixed grid of times. What a schedule says at those times (alpha, sigma, their derivatives, a
model's preconditioning) is asked for at every step, and costs tens of microseconds when it is made of one-element
tensors. A `Node` is a time of such a grid: a Python float that knows its table. A method marked `@tabulated` is
written for a tensor of times; called with a tensor it runs as written, called with a `Node` it has been run once on
the whole grid, in float64, and the row of that node is looked up as plain numbers.

Nothing is stored on the SDE. A table belongs to its run and goes with it; but the numbers of an owner that is known by
its value (a frozen dataclass of numbers, as the shipped schedules are) serve the next run over the same times too.

Only objects with `tabulates = True` are given nodes (see `sde.solvers.trajectory`); whoever writes a level-1 SDE or a
guidance rule sees times as tensors of shape (), as the convention says.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor


class Node(float):
    """One time of a grid: a float with its place in a `Table`."""

    __slots__ = ("index", "table")
    index: int
    table: Table


class Table:
    """All times of one run, with a column for each quantity that was asked for.

    Args:
        times: Grid of shape (N,), in the order of the run.
        stages: Times inside each step at which a solver evaluates, each of shape (N - 1,); they follow the grid in
            `all`.

    Example:
        >>> table = Table(torch.linspace(1, 0, 3), stages=[torch.tensor([0.75, 0.25])])
        >>> table.nodes, table.all[3:]
        ([1.0, 0.5, 0.0], [0.75, 0.25])
    """

    def __init__(self, times: Tensor, stages: Sequence[Tensor] = ()) -> None:
        grid = times.detach().to("cpu", torch.float64)
        self.times = torch.cat([grid, *(stage.to(grid) for stage in stages)]) if stages else grid
        self.steps, self.stages = len(grid) - 1, len(stages)
        self.values: tuple[float, ...] = tuple(self.times.tolist())
        self.columns: dict[Any, list] = {}
        self._made: dict[Any, Any] = {}
        self._owners: list[object] = []  # kept alive, so that an id in a key stays its owner's own
        self.all = [Node(t) for t in self.values]
        for index, node in enumerate(self.all):
            node.index, node.table = index, self
        self.nodes = self.all[: self.steps + 1]

    @property
    def contents(self) -> tuple[dict, dict]:
        """All that has been made, without those it was made for."""
        return self.columns, self._made

    def made(self, owner: object, key: object, make: Callable[[Tensor], Any]) -> Any:
        """make(all times), computed at the first call."""
        found = self._made.get((id(owner), key))
        if found is None:
            found = self._made[id(owner), key] = make(self.times)
            self._owners.append(owner)
        return found

    def column(self, owner: object, key: object, make: Callable[[Tensor], Any]) -> list:
        """Rows of make(all times), computed at the first call: numbers of what has shape (N,), else tensors."""
        found = self.columns.get((id(owner), key))
        if found is None:
            found = self.columns[id(owner), key] = _rows(self.made(owner, key, make), len(self.times))
        return found

    def numbers(self, owner: object, key: object, make: Callable[[Tensor], Any]) -> list:
        """Rows as `column` makes them, for what is made of numbers alone: kept for other runs if it may be."""
        found = self.columns.get((id(owner), key))
        if found is None:
            if not by_value(owner):
                return self.column(owner, key, make)
            rows = remembered((owner, key, self.values), lambda: _rows(make(self.times), len(self.times)))
            found = self.keep(owner, key, rows)
        return found

    def keep(self, owner: object, key: object, rows: list) -> list:
        """Rows that were made elsewhere, as a column of this table."""
        self.columns[id(owner), key] = rows
        self._owners.append(owner)
        return rows


def _rows(made: Any, n: int) -> list:
    if isinstance(made, tuple):
        return list(zip(*(_rows(m, n) for m in made), strict=True))
    if not isinstance(made, Tensor) or made.ndim == 0:
        return [float(made)] * n
    return made.tolist() if made.ndim == 1 else list(made.unbind(0))


REMEMBERED = 64
"""Things that are kept for later runs."""

_MEMORY: OrderedDict[Hashable, Any] = OrderedDict()


def remembered(key: Hashable, make: Callable[[], Any]) -> Any:
    """What make() gave when it was last asked for by an equal key, if that is not long ago.

    Example:
        >>> remembered(("a", 1), lambda: [1]) is remembered(("a", 1), lambda: [2])
        True
    """
    found = _MEMORY.pop(key, None)
    _MEMORY[key] = found = make() if found is None else found  # at the end: what was not asked for longest goes first
    while len(_MEMORY) > REMEMBERED:
        _MEMORY.popitem(last=False)
    return found


def by_value(thing: object) -> bool:
    """Whether equal things are the same for ever: numbers, words, and frozen dataclasses and tuples of them.

    Example:
        >>> import sde
        >>> by_value(sde.VP(beta_max=10.0)), by_value([1.0])
        (True, False)
    """
    if isinstance(thing, tuple):
        return all(map(by_value, thing))
    if isinstance(thing, (int, float, str, type(None))):
        return True
    parameters = getattr(type(thing), "__dataclass_params__", None)
    if parameters is None or not parameters.frozen or type(thing).__hash__ is object.__hash__:
        return False
    return all(by_value(getattr(thing, field.name)) for field in fields(thing))  # pyright: ignore[reportArgumentType]


def tabulated(method: Callable[[Any, Tensor], Any]) -> Callable[[Any, Any], Any]:
    """Method of (self, t): computed for a tensor of times, looked up for a `Node`."""
    name = method.__name__

    @functools.wraps(method)
    def lookup(self: object, t: Any) -> Any:
        if type(t) is not Node:
            return method(self, t)
        column = t.table.columns.get((id(self), name))
        if column is None:
            column = t.table.numbers(self, name, functools.partial(method, self))
        return column[t.index]

    return lookup
