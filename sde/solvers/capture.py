r"""A whole run as CUDA graphs: what `sample(..., compile=True)` does.

A kernel costs the CPU some microseconds to launch, and a step is many kernels; with a small network a GPU waits for
Python most of the time. A CUDA graph records kernels once, coefficients included, and launches all of them at once,
into the same memory each time. So a run is recorded on its first call (three runs' time) and replayed on later ones:
the state goes in by a copy, noise and conditions too, and the samples are those of the plain loop to rounding, as
linear combinations are one kernel each (`sde.fused`).

A graph knows nothing of Python. It reads the weights where they lie, so that training in place shows, and it is
recorded anew where another run is asked for: other shapes, times, solvers or models, weights that lie elsewhere,
another guidance scale. What a network decides by Python of its own (a flag, a counter) stays as it was on the first
call: see `forget`. Graphs go with their model, and a model keeps the last `KEPT` of them.
"""

from __future__ import annotations

import gc
import math
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from collections.abc import Generator as Running
from contextlib import closing, contextmanager
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from sde.fused import fusing
from sde.random import Generator, WhiteNoise, randn
from sde.score import Model
from sde.score.model import Given, Wrapper
from sde.solvers.solver import Solver

States = Running[Tensor, None, None]
Work = Callable[[Tensor, WhiteNoise], States]
"""From a start and its noise the states after each step of a run."""

Piece = tuple[Callable[[], None], int]
"""A part of a run, and how many draws of noise it and those before it take."""

KEPT = 4
"""Runs that a model keeps recorded: each holds the memory of one."""

LENGTH = 8
"""Steps of a graph."""

DEVICES = ("cuda",)

_GRAPHS: WeakKeyDictionary[nn.Module, OrderedDict[Any, Recorded]] = WeakKeyDictionary()


class Tape(WhiteNoise):
    """Noise that is drawn before a run: its draws are buffers, made on the first run and filled anew for each other.

    Example:
        >>> tape, x = Tape(), torch.zeros(2, 3)
        >>> first = tape.fresh(x)
        >>> tape.refill(torch.Generator().manual_seed(1))
        >>> torch.equal(first, randn((2, 3), torch.Generator().manual_seed(1)))
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self.buffers: list[Tensor] = []
        self.drawn = 0

    def fresh(self, x: Tensor) -> Tensor:
        """The next buffer."""
        if self.drawn == len(self.buffers):  # any numbers will do, but not those of torch's own generator
            own = torch.Generator(x.device).manual_seed(self.drawn)
            self.buffers.append(randn(x.shape, own, dtype=x.dtype, device=x.device))
        self.drawn += 1
        return self.buffers[self.drawn - 1]

    def normal(self, x: Tensor, t: float, s: float) -> Tensor:
        """The next buffer."""
        return self.fresh(x)

    def increment(self, x: Tensor, t: float, s: float) -> Tensor:
        """The next buffer, scaled."""
        return self.fresh(x) * math.sqrt(abs(s - t))

    def rewind(self) -> None:
        """Begin a run."""
        self.drawn = 0

    def refill(self, generator: Generator, start: int = 0, end: int | None = None) -> None:
        """Draw anew, in the order in which a run asks, its draws from one number to another."""
        for buffer in self.buffers[start:end]:
            device = None if generator is None else getattr(generator, "device", None)
            if (
                buffer.dtype == torch.float32
                and device in (None, buffer.device)
                and not isinstance(generator, Sequence)
            ):
                buffer.normal_(generator=generator)  # randn's numbers, in place
            else:
                buffer.copy_(randn(buffer.shape, generator, dtype=torch.float32, device=buffer.device))


class Recorded:
    """One run, recorded: a call copies its arguments in and replays it.

    Args:
        work: The run.
        x: A start; only its shape, dtype and device matter.
        conditions: Tensors that the run reads, and that a call may fill with others.
        name: Of the run, for errors.
    """

    def __init__(
        self, work: Callable[[Tensor, WhiteNoise], States], x: Tensor, conditions: Sequence[Tensor], name: str
    ) -> None:
        self.x, self.conditions, self.tape = x.clone(), list(conditions), Tape()
        self.leaves: list[ref[nn.Module]] = []
        self.kept: object = None

        def again() -> States:
            self.tape.rewind()
            return work(self.x, self.tape)

        self.pieces, self.out = _record(again, self.tape, x.device, name)

    def __call__(self, x: Tensor, conditions: Sequence[Tensor], generator: Generator) -> Tensor:
        """The end of the run."""
        self.x.copy_(x)
        for mine, given in zip(self.conditions, conditions, strict=True):
            mine.copy_(given)
        before = 0
        for replay, drawn in self.pieces:  # a piece's noise is drawn while the piece before runs
            self.tape.refill(generator, before, drawn)
            replay()
            before = drawn
        return self.out.clone()


def _record(work: Callable[[], States], tape: Tape, device: torch.device, name: str) -> tuple[list[Piece], Tensor]:
    """Pieces that do the work again, one after the other, and where its result lies."""
    side, outer = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    side.wait_stream(outer)
    try:
        with torch.cuda.device(device), torch.cuda.stream(side), fusing():
            steps = sum(1 for _ in work())  # makes what is made once: handles of libraries, tables of coefficients
            with _no_waiting():  # a recording that fails leaves the device in disorder: find it out before
                deque(work(), 1)
            torch.cuda.synchronize()
            gc.collect()
            torch.cuda.empty_cache()
            with closing(work()) as states:
                pieces, out = _graphs(states, steps, tape)
    except RuntimeError as error:
        raise ValueError(
            f"compile=True cannot record {name}: while it runs, a value on the GPU is looked at or one is copied there "
            f"(.item(), a tensor on the CPU); use compile=False. {error}"
        ) from error
    outer.wait_stream(side)
    return pieces, out


def _graphs(states: States, steps: int, tape: Tape) -> tuple[list[Piece], Tensor]:
    """Graphs that make the states, and the last state.

    To launch a graph takes a time that grows with it. So the first holds one step and each other `LENGTH`, and is
    launched while the one before runs.
    """
    pieces, out, length, pool = [], None, 1, torch.cuda.graph_pool_handle()
    while steps > 0:
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool, capture_error_mode="thread_local")
        try:
            (out,) = deque(islice(states, length), 1)
        finally:
            with warnings.catch_warnings():  # steps may have been made at once by the first
                warnings.filterwarnings("ignore", "The CUDA Graph is empty")
                graph.capture_end()
        pieces.append((graph.replay, tape.drawn))
        steps, length = steps - length, LENGTH
    assert out is not None
    return pieces, out


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Operations that make the CPU wait for the GPU are errors."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def captured(
    model: Model, x: Tensor, run: Sequence[Any], make: Callable[[], tuple[Work, object]], generator: Generator
) -> Tensor:
    """The end of a run that starts from x: replayed if it was recorded, else recorded first.

    Args:
        model: What the run samples.
        x: Its start.
        run: All else that the run depends on: the solver first, then numbers, strings, lists of them.
        make: Makes the run, and what must live as long as its graph.
        generator: Of its noise.
    """
    parts = list(_parts(model))
    given = [part for part in parts if isinstance(part, Given)]
    leaves = [part for part in parts if not isinstance(part, Wrapper)]
    conditions = [c for part in given for c in part.cond.values() if isinstance(c, Tensor)]
    key = (
        (x.shape, x.stride(), x.dtype, x.device),
        _signature(run),
        tuple(map(_of_part, parts)),
        (torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"), torch.get_float32_matmul_precision()),
    )
    graphs = _GRAPHS.setdefault(leaves[0], OrderedDict())
    found = graphs.get(key)
    if found is None or any(leaf() is None for leaf in found.leaves):
        work, kept = make()
        mine = [c.clone() for c in conditions]

        def conditioned(x: Tensor, noise: WhiteNoise) -> States:
            with _instead(given, mine):
                yield from work(x, noise)

        found = Recorded(conditioned, x, mine, f"{type(run[0]).__name__} on {type(model).__name__}")
        found.leaves, found.kept = [ref(leaf) for leaf in leaves], kept
        graphs[key] = found
    graphs.move_to_end(key)
    while len(graphs) > KEPT:
        graphs.popitem(last=False)
    return found(x, conditions, generator)


def forget(model: Model) -> None:
    """Let go of a model's recorded runs: of their memory, and of what its network's Python decided when they were made.

    Example:
        >>> import sde
        >>> sde.solvers.capture.forget(sde.ScoreModel(sde.nets.MLP(dim=2, width=8), sde.VP()))
    """
    for part in _parts(model):
        _GRAPHS.pop(part, None)


@contextmanager
def _instead(given: Sequence[Given], tensors: Sequence[Tensor]) -> Iterator[None]:
    """Models with these tensors in place of their own conditions."""
    before, others = [part.cond for part in given], iter(tensors)
    for part in given:
        part.cond = {name: next(others) if isinstance(c, Tensor) else c for name, c in part.cond.items()}
    try:
        yield
    finally:
        for part, cond in zip(given, before, strict=True):
            part.cond = cond


def _parts(model: nn.Module) -> Iterator[nn.Module]:
    """The model, and where it is made from others those."""
    yield model
    if isinstance(model, Wrapper):
        for child in model.children():
            yield from _parts(child)


def _of_part(part: nn.Module) -> tuple:
    """What a recording of a model or module is right for: its attributes, and where its tensors lie."""
    wrapper = isinstance(part, Wrapper)
    attributes = {name: value for name, value in vars(part).items() if not name.startswith("_")}
    if isinstance(part, Given):  # tensors given as conditions are copied in
        attributes["cond"] = {
            name: (c.shape, c.dtype, c.device) if isinstance(c, Tensor) else c for name, c in part.cond.items()
        }
    where = tuple(t.data_ptr() for t in (_own(part) if wrapper else _tensors(part)))
    return type(part), None if wrapper else id(part), _signature(attributes), where


def _own(module: nn.Module) -> Iterator[Tensor]:
    for held in (module._parameters, module._buffers):
        yield from (t for t in held.values() if t is not None)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers, as module.parameters() gives them in four times the time."""
    yield from _own(module)
    for child in module._modules.values():
        if child is not None:
            yield from _tensors(child)


def _signature(value: Any) -> Any:
    """Something to compare a value by: equal where a recording made with one serves the other."""
    if isinstance(value, Tensor):
        where = None if value.is_cpu else value.data_ptr()  # a graph reads the GPU as it is then, the CPU as it was
        return value.shape, value.dtype, value.device, where or tuple(value.flatten().tolist())
    if isinstance(value, list | tuple | deque):
        return type(value), *map(_signature, value)
    if isinstance(value, dict):
        return tuple((name, _signature(item)) for name, item in value.items())
    if isinstance(value, Solver):
        return type(value), _signature(vars(value))
    return value if isinstance(value, Hashable) else id(value)
