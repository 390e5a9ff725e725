r"""Manifests: objects as JSON, {class, args}, and back.

A public class of `sde` is named as it is, one's own with its module, so that neither can stand for the other. Arguments
are those that the constructor was given, found under their own names.

Rebuilding trusts nothing that the file says. Only classes that score models are made of are known, and those that the
reader names; arguments are checked by the constructor's type hints; a network may not be far larger than what the file
holds for it, which bounds memory and time; whatever a constructor raises comes back as one error.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import math
import reprlib
import threading
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

import sde.forward
import sde.nets
import sde.score

DEEPEST = 32
"""Levels of nesting: a model in a file has about four."""

ALWAYS = 2**20
"""Whole numbers up to this are accepted whatever the size of the file."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read: missing, truncated, altered, or of an unknown class."""


@functools.cache
def _public() -> dict[str, type]:
    """The classes of `sde` that a score model is made of, by name: those whose arguments are plain."""
    rooms = (sde.forward, sde.nets, sde.score)
    classes = [c for room in rooms for c in (getattr(room, name) for name in room.__all__) if inspect.isclass(c)]
    parts = (sde.forward.ForwardSDE, sde.score.ScoreModel)
    return {
        c.__name__: c
        for c in classes
        if not inspect.isabstract(c) and (issubclass(c, parts) or c.__module__.startswith("sde.nets."))
        if c is not sde.forward.FromCoefficients
    }


def describe(obj: Any) -> Any:
    """An object as JSON: numbers, strings, lists, or {class, args} with the arguments that its constructor was given.

    Raises:
        TypeError: If an argument is none of these, or was not kept under its own name.

    Example:
        >>> import sde
        >>> sde.train.describe(sde.VE(0.01, 50.0))
        {'class': 'VE', 'args': {'sigma_min': 0.01, 'sigma_max': 50.0, 't_min': 1e-05, 't_max': 1.0}}
    """
    return _described(obj, type(obj).__name__)


def _described(obj: Any, where: str) -> Any:
    if isinstance(obj, np.ndarray | np.generic):
        obj = obj.tolist()
    if isinstance(obj, Tensor):
        if not bool(torch.isfinite(obj).all()):
            raise TypeError(f"{where} holds values that are not finite, which JSON does not have: clean it first")
        return obj.tolist()
    if isinstance(obj, float) and not math.isfinite(obj):
        raise TypeError(f"{where} is {obj}, which JSON does not have: use a large finite number")
    for plain in (bool, int, float, str):
        if isinstance(obj, plain):
            return plain(obj)
    if obj is None:
        return None
    if isinstance(obj, list | tuple):
        return [_described(o, f"{where}[{i}]") for i, o in enumerate(obj)]
    if inspect.isroutine(obj) or isinstance(obj, type | functools.partial | dict | set | bytes | torch.dtype):
        raise TypeError(
            f"{where} is {reprlib.repr(obj)}, which a checkpoint cannot hold: write a class with plain arguments in "
            "its place (a ScalarSDE with alpha and sigma, say), or save model.state_dict() yourself"
        )
    if hasattr(obj, "_orig_mod"):
        raise TypeError(
            f"{where} is wrapped by torch.compile, which a checkpoint cannot hold: make the model with the plain "
            "network, and train it with compile=True"
        )
    return {"class": _name(_plain(type(obj))), "args": {n: _described(v, f"{where}.{n}") for n, v in _arguments(obj)}}


def _plain(cls: type) -> type:
    """The class itself, where FSDP2 put one of its own in its place."""
    sharded = any(base.__name__ == "FSDPModule" for base in cls.__bases__)
    return cls.__bases__[1] if sharded else cls


def _name(cls: type) -> str:
    return cls.__name__ if _public().get(cls.__name__) is cls else f"{cls.__module__}.{cls.__qualname__}"


def _arguments(obj: object) -> Iterator[tuple[str, Any]]:
    cls = _plain(type(obj))
    name = cls.__name__
    if cls.__init__ is nn.Module.__init__:  # it takes anything, and passes nothing on
        return
    for p in inspect.signature(cls).parameters.values():
        if p.kind not in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
            raise TypeError(
                f"{name} takes {p}, and so cannot be made again from named arguments: give its class named ones"
            )
        if not hasattr(obj, p.name):
            raise TypeError(f"{name} does not keep its argument {p.name!r}: store it as self.{p.name}")
        yield p.name, getattr(obj, p.name)


def rebuild(made: Any, types: Sequence[type] = (), weights: Mapping[str, Tensor] | None = None) -> Any:
    """The object that `describe` described.

    Args:
        made: JSON.
        types: Classes of one's own that it may name.
        weights: What will fill the object: nothing much larger is made.

    Raises:
        CheckpointError: If a class is not known, an argument does not fit, or a constructor raises.

    Example:
        >>> import sde
        >>> sde.train.rebuild({"class": "EDM", "args": {"sigma_max": 10.0}})
        EDM(sigma_min=0.002, sigma_max=10.0)
    """
    if weights is None:
        return _rebuilt(made, types, math.inf, 0)
    numbers = sum(w.numel() for w in weights.values())
    with _bounded(numbers, len(weights)):
        return _rebuilt(made, types, max(numbers, ALWAYS), 0)


def _rebuilt(made: Any, own: Sequence[type], largest: float, depth: int) -> Any:
    if depth > DEEPEST:
        raise CheckpointError(f"the manifest is nested deeper than {DEEPEST}: sde.save did not write it")
    if isinstance(made, list):
        return [_rebuilt(m, own, largest, depth + 1) for m in made]
    if isinstance(made, int) and abs(made) > largest:
        digits = made.bit_length() * 3 // 10
        raise CheckpointError(f"the manifest asks for a number of {digits} digits: sde.save did not write it")
    if not isinstance(made, dict):
        return made
    if set(made) != {"class", "args"} or not isinstance(made["args"], dict):
        raise CheckpointError(f"the manifest has {reprlib.repr(made)} in place of an object's class and args")
    cls = _known(made["class"], own)
    args = {k: _rebuilt(v, own, largest, depth + 1) for k, v in made["args"].items()}
    _check_arguments(cls, args)
    try:
        return cls(**args)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a constructor makes of strange numbers
        raise CheckpointError(f"{cls.__name__} cannot be made from {reprlib.repr(made['args'])}: {error}") from error


def _known(name: Any, own: Sequence[type]) -> type:
    public = _public()
    if isinstance(name, str):
        if name in public:
            return public[name]
        for cls in own:
            if "." in name and name.rpartition(".")[2] == cls.__name__:
                return cls
    short = str(name).rpartition(".")[2][:60]
    raise CheckpointError(
        f"unknown class {str(name)[:120]!r}: known are {', '.join(sorted(public))}"
        + "".join(f", {c.__name__}" for c in own)
        + f"; pass types=[{short}] to load one of your own"
    )


def _check_arguments(cls: type, args: dict[str, Any]) -> None:
    accepted = inspect.signature(cls).parameters
    strange = set(args) - set(accepted)
    if strange:
        raise CheckpointError(f"{cls.__name__} takes {', '.join(accepted)}, the checkpoint gives {sorted(strange)} too")
    try:
        hints = typing.get_type_hints(cls.__init__)
    except (NameError, TypeError, AttributeError):  # one's own class, with hints that only a checker resolves
        hints = {}
    for name, value in args.items():
        hint = hints.get(name, Any)
        if not _fits(value, hint):
            kind = hint.__name__ if inspect.isclass(hint) else hint
            raise CheckpointError(f"{cls.__name__} takes {name} as {kind}, the checkpoint gives {reprlib.repr(value)}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a rebuilt value is what a type hint says."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, h) for h in inner)
    if origin is typing.Literal:
        return value in inner
    if hint is Tensor:
        return all(_fits(v, Tensor) for v in value) if isinstance(value, list) else _fits(value, float)
    if hint in (float, int):
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
    listlike = origin if inspect.isclass(origin) else hint
    if listlike in (list, tuple, collections.abc.Sequence):
        return isinstance(value, list) and (not inner or all(_fits(v, inner[0]) for v in value))
    if origin is collections.abc.Callable or hint is collections.abc.Callable:
        return callable(value)
    return isinstance(value, hint) if inspect.isclass(hint) else True


@contextmanager
def _bounded(numbers: int, tensors: int) -> Iterator[None]:
    """Refuse a network as soon as it has far more parameters than its file, before the excess is filled."""
    thread, made, count = threading.get_ident(), 0, 0

    def registered(module: nn.Module, name: str, parameter: Tensor | None) -> None:
        nonlocal made, count
        if parameter is None or threading.get_ident() != thread:
            return
        made, count = made + parameter.numel(), count + 1
        if made > 2 * numbers + ALWAYS or count > 2 * tensors + 256:  # twice: a class may replace what it made
            raise CheckpointError(
                f"the manifest describes a larger network than its file, which holds {numbers} numbers in {tensors} "
                "tensors: sde.save did not write it"
            )

    handle = register_module_parameter_registration_hook(registered)
    try:
        yield
    finally:
        handle.remove()
