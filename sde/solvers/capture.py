r"""A whole run as one CUDA graph: what `sample(..., compile=True)` does.

A kernel costs the CPU some microseconds to launch, and a step is many kernels; with a small network a GPU waits for
Python most of the time. A CUDA graph records the kernels of a run once, coefficients included, and launches all of them
at once, into the same memory each time. So a run is recorded on its first call (three runs' time) and repeated on later
ones: the state goes in by a copy, noise and conditions too, and the samples are those of the plain loop.

A graph knows nothing of Python. It reads the weights where they lie, so that training in place shows, and it is
recorded anew where another run is asked for: other shapes, times, solvers or models, weights that lie elsewhere,
another guidance scale. What a network decides by Python of its own (a flag, a counter) stays as it was on the first
call: see `forget`. Graphs go with their model, and a model keeps the last `KEPT` of them.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from sde.random import Generator, WhiteNoise, randn, randn_like
from sde.score import Model
from sde.score.model import Given, Wrapper
from sde.solvers.solver import Solver

Work = Callable[[Tensor, WhiteNoise], Tensor]
"""From a start and its noise to the end of a run."""

KEPT = 4
"""Graphs that a model keeps: each holds the memory of one run."""

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

    def refill(self, generator: Generator) -> None:
        """Draw anew, in the order in which a run asks."""
        for buffer in self.buffers:
            buffer.copy_(randn_like(buffer, generator))


class Recorded:
    """One run, recorded: a call copies its arguments in and replays it.

    Args:
        work: The run.
        x: A start; only its shape, dtype and device matter.
        conditions: Tensors that the run reads, and that a call may fill with others.
        name: Of the run, for errors.
    """

    def __init__(self, work: Work, x: Tensor, conditions: Sequence[Tensor], name: str) -> None:
        self.x, self.conditions, self.tape = x.clone(), list(conditions), Tape()
        self.leaves: list[ref[nn.Module]] = []
        self.kept: object = None

        def again() -> Tensor:
            self.tape.rewind()
            return work(self.x, self.tape)

        self.replay, self.out = _record(again, x.device, name)

    def __call__(self, x: Tensor, conditions: Sequence[Tensor], generator: Generator) -> Tensor:
        """The end of the run."""
        self.x.copy_(x)
        for mine, given in zip(self.conditions, conditions, strict=True):
            mine.copy_(given)
        self.tape.refill(generator)
        self.replay()
        return self.out.clone()


def _record(work: Callable[[], Tensor], device: torch.device, name: str) -> tuple[Callable[[], None], Tensor]:
    """A call that does the work again, and where its result lies."""
    graph, side, outer = torch.cuda.CUDAGraph(), torch.cuda.Stream(device), torch.cuda.current_stream(device)
    side.wait_stream(outer)
    try:
        with torch.cuda.device(device), torch.cuda.stream(side):
            work()  # what is made once is made here: handles of libraries, tables of coefficients
            with _no_waiting():  # a recording that fails leaves the device in disorder: find it out before
                work()
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                out = work()
    except RuntimeError as error:
        raise ValueError(
            f"compile=True cannot record {name}: while it runs, a value on the GPU is looked at or one is copied there "
            f"(.item(), a tensor on the CPU); use compile=False. {error}"
        ) from error
    outer.wait_stream(side)
    return graph.replay, out


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

        def conditioned(x: Tensor, noise: WhiteNoise) -> Tensor:
            with _instead(given, mine):
                return work(x, noise)

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
    tensors = [*part.parameters(recurse=not wrapper), *part.buffers(recurse=not wrapper)]
    return type(part), None if wrapper else id(part), _signature(attributes), tuple(t.data_ptr() for t in tensors)


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
