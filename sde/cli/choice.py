"""A choice by name, with arguments, and the object that it makes.

    sde=EDM                          the default arguments
    sde.name=EDM sde.sigma_max=10    [sde] name = "EDM", sigma_max = 10 in a recipe
    solver=PredictorCorrector solver.corrector=Langevin solver.corrector.snr=.1

What arguments there are, and of which types, is read off the callable's own signature.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sde
from sde.cli.mistakes import Mistake, unknown
from sde.cli.names import TABLES

KIND = {"sde": "SDE", "data": "data set", "net": "network", "grid": "time grid", "times": "distribution of times"}
"""What a message calls a kind of thing, where that is not its name."""

OURS = {
    "data": {"generator", "bytes"},
    "net": {"dim", "classes"},
    "grid": {"sde", "steps", "scale"},
    "loss": {"weight", "times", "coupling"},
    "method": {"model", "observation"},
}
"""Arguments that the program itself gives."""

FIELD = {"net": "model"}
"""Where a configuration holds a kind of thing, where that is not its name."""


def kind_of(key: str) -> str:
    """The kind of thing that a field of a configuration holds.

    Example:
        >>> kind_of("sde"), kind_of("model")
        ('sde', 'net')
    """
    return next((kind for kind, name in FIELD.items() if name == key), key)


@dataclass(frozen=True)
class Choice:
    """One of the things that have a name, and the arguments to make it with.

    Attributes:
        name: See `sde list`.
        args: Arguments by name; a solver inside a solver is a Choice.
    """

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)

    def flat(self) -> Any:
        """As a recipe has it: the name alone, or a table."""
        inner = {k: v.flat() if isinstance(v, Choice) else v for k, v in self.args.items()}
        return {"name": self.name, **inner} if inner else self.name


class Text(str):
    """A value as it was typed on the command line, whose type is not known yet."""


def lookup(kind: str, name: str) -> Callable[..., Any]:
    """The class or function of a name."""
    if name not in TABLES[kind]:
        raise unknown(KIND.get(kind, kind), name, TABLES[kind])
    return TABLES[kind][name]


def arguments(kind: str, name: str) -> dict[str, inspect.Parameter]:
    """The arguments that a user may give, with their evaluated annotations."""
    signature = inspect.signature(lookup(kind, name), eval_str=True)
    return {k: p for k, p in signature.parameters.items() if k not in OURS.get(kind, ())}


def choose(kind: str, tree: Any, key: str, default: Choice | None = None) -> Choice:
    """The choice that a name, or a table with a name and arguments, describes; every argument is checked.

    Args:
        kind: Key of `names.TABLES`.
        tree: A name, or a mapping; one without a name changes the arguments of the default.
        key: Where it stands in the configuration, for messages.
        default: What is chosen without it.
    """
    if isinstance(tree, str):
        tree = {"name": str(tree)}
    if not isinstance(tree, Mapping):
        raise Mistake(f"{key} must be the name of a {KIND.get(kind, kind)} or a table with one, got {tree!r}")
    name, args = tree.get("name", default.name if default else None), {k: v for k, v in tree.items() if k != "name"}
    if name is None:
        raise Mistake(f"{key}.name is missing: there are {', '.join(TABLES[kind])}")
    known = arguments(kind, str(name))
    kept = dict(default.args) if default and default.name == name else {}
    for arg, value in args.items():
        if arg not in known:
            raise unknown(f"argument of {name}", arg, known)
        hint = known[arg].annotation
        if _is_solver(hint):
            inner = kept.get(arg)
            kept[arg] = choose("solver", value, f"{key}.{arg}", inner if isinstance(inner, Choice) else None)
        else:
            kept[arg] = convert(value, hint, f"{key}.{arg}")
    return Choice(str(name), kept)


def make(kind: str, choice: Choice, **ours: Any) -> Any:
    """The object of a choice; what its class refuses is a mistake of the user's."""
    maker = lookup(kind, choice.name)
    accepted = inspect.signature(maker).parameters
    given = {k: v for k, v in ours.items() if k in accepted}
    given |= {k: make("solver", v) if isinstance(v, Choice) else v for k, v in choice.args.items()}
    missing = [k for k, p in accepted.items() if p.default is p.empty and k not in given]
    if missing:
        raise Mistake(
            f"{choice.name} needs {missing[0]!r}: pass {FIELD.get(kind, kind)}.{missing[0]}=..., see `sde list`"
        )
    try:
        return maker(**given)
    except (TypeError, ValueError, OSError, ImportError) as error:
        raise Mistake(f"{choice.name}: {error}") from error


def _is_solver(hint: Any) -> bool:
    options = typing.get_args(hint) or (hint,)
    return any(isinstance(o, type) and issubclass(o, sde.Solver) for o in options)


def convert(value: Any, hint: Any, key: str) -> Any:
    """A value of the type that is asked for, or a mistake that says which.

    Example:
        >>> (
        ...     convert(Text("1e-3"), float, "lr"),
        ...     convert(Text("out/x"), Path, "out"),
        ...     convert(Text("none"), float | None, "eta"),
        ... )
        (0.001, PosixPath('out/x'), None)
    """
    if isinstance(value, Text):
        value = _read(value, hint)
    if type(value) is int and float in (hint, *typing.get_args(hint)) and int not in typing.get_args(hint):
        return float(value)
    if hint in (Path, Path | None) and isinstance(value, str):
        return Path(value)
    if not _fits(value, hint):
        raise Mistake(f"{key} must be {_wording(hint)}, got {value!r}")
    return value


def _read(text: str, hint: Any) -> Any:
    import tomllib

    if hint in (str, Path):
        return str(text)
    if text.lower() == "none" and _fits(None, hint):
        return None
    try:
        return tomllib.loads(f"v = {text.lower() if text in ('True', 'False') else text}")["v"]
    except tomllib.TOMLDecodeError:
        pass
    try:
        return float(text)  # .5 and 1. are numbers too
    except ValueError:
        return str(text)


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return any(_fits(value, h) for h in typing.get_args(hint))
    plain = {int: int, float: (int, float), bool: bool, str: str, Path: (str, Path), type(None): type(None)}
    if hint not in plain:
        return True  # a list, a path to a picture: its own class will say
    return isinstance(value, plain[hint]) and (hint is bool or not isinstance(value, bool))


def _wording(hint: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    options = typing.get_args(hint) or (hint,)
    return " or ".join(words.get(h, "none") for h in options)
