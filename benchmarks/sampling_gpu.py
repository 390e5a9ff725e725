r"""Sampling on a GPU: microseconds per evaluation, ours plain and compiled, against the network alone.

The floor of a run of n evaluations is n times the network alone, in the quickest form that we know: captured as a CUDA
graph, once and replayed n times, or n times in a row in one graph. What `sample` is asked for is all that a user asks
for: a start drawn from the prior, the run, the look at the end whether its numbers are finite.

Beside it, by torch's profiler: how many kernels a step adds to the network's own, and how often the host waits for the
device or copies to it in the loop, which must be never.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType

import sde
from benchmarks import harness
from benchmarks.harness import number
from benchmarks.overhead import Identity
from benchmarks.peers import PACKAGES, bring

Run = Callable[[], object]


class ConvNet(nn.Module):
    """A small residual network for images: two convolutions to a block, the clock added to each channel."""

    def __init__(self, channels: int = 3, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        self.embed, self.inward = sde.nets.embed.Fourier(32), nn.Conv2d(channels, width, 3, padding=1)
        self.time = nn.ModuleList(nn.Linear(32, width) for _ in range(depth))
        self.one = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.two = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.outward = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Output shaped as x for a clock c (B,)."""
        e, h = self.embed(c).to(x.dtype), self.inward(x)
        for time_, one, two in zip(self.time, self.one, self.two, strict=True):
            h = h + two(nn.functional.silu(one(h) + time_(e)[:, :, None, None]))
        return self.outward(h)


@dataclass(frozen=True)
class Network:
    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


NETWORKS = (
    Network("MLP, 1000 × 2", lambda: sde.nets.MLP(dim=2, width=128, depth=3), (1000, 2)),
    Network("MLP, 1000 × 2, compiled", lambda: compiled(sde.nets.MLP(dim=2, width=128, depth=3)), (1000, 2)),
    Network("convolutions, 64 × 3 × 32 × 32", ConvNet, (64, 3, 32, 32)),
    Network("convolutions, bf16", ConvNet, (64, 3, 32, 32), torch.bfloat16),
)
RULES: tuple[tuple[str, Callable[[], sde.ForwardSDE], str, Callable[[], sde.Solver | None]], ...] = (
    ("Euler, Flow, velocity", sde.Flow, "velocity", sde.Euler),
    ("DDIM, VP, eps", sde.VP, "eps", sde.DDIM),
    ("Ancestral, VP, eps", sde.VP, "eps", sde.Ancestral),
    ("default, EDM, edm", sde.EDM, "edm", lambda: None),
)


def compiled(net: nn.Module) -> nn.Module:
    net.compile()
    return net


@dataclass
class Row:
    network: str
    rule: str
    steps: int
    micros: dict[str, float]


@dataclass
class Result:
    """Wall-clock microseconds per evaluation, by what ran, and what the profiler saw."""

    device: str
    rows: list[Row] = field(default_factory=list)
    profile: list[list] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def available() -> bool:
    return torch.cuda.is_available()


def measure(sizes: tuple[int, ...] = (32, 100), rounds: int = 12, networks: tuple[Network, ...] = NETWORKS) -> Result:
    """Everything, on the first CUDA device."""
    result = Result(torch.cuda.get_device_name())
    with torch.no_grad():
        for network in networks:
            began = time.monotonic()
            try:
                _network(network, sizes, rounds, result)
            except Exception as error:  # a compiler that is not there must not end the run
                result.skipped.append(f"{network.name}: failed with {type(error).__name__}: {str(error)[:200]}")
            print(f"{network.name}: {time.monotonic() - began:.0f} s", flush=True)
        result.profile = [row for rule in RULES for row in profiled(*rule)]
    return result


def _network(network: Network, sizes: tuple[int, ...], rounds: int, result: Result) -> None:
    torch.manual_seed(0)
    net = network.make().to("cuda", network.dtype).eval()
    x = torch.randn(network.shape, device="cuda", dtype=network.dtype)
    c = torch.full((len(x),), 0.3, device="cuda")
    for steps in sizes:
        runs: dict[str, Run] = {
            "forward": lambda: [net(x, c) for _ in range(steps)],  # noqa: B023
            "graph of one": _repeated(graphed(lambda: net(x, c)), steps),
            "graph of all": graphed(lambda: [net(x, c) for _ in range(steps)][-1]),  # noqa: B023
        }
        for name, forward, param, solver in RULES:
            model = sde.ScoreModel(net, forward(), param).to("cuda", network.dtype).eval()
            for what, flag in (("plain", False), ("compiled", True)):
                runs[f"{name}/{what}"] = lambda model=model, solver=solver, flag=flag: sde.sample(
                    model, network.shape, steps, solver(), progress=False, compile=flag  # noqa: B023
                )  # fmt: skip
        if network.dtype == torch.float32:
            try:
                runs["diffusers"] = diffusers(net, x, steps)
            except ImportError as error:
                result.skipped.append(f"diffusers: not installed ({error})")
        turns = harness.interleave({k: _waited(run) for k, run in runs.items()}, rounds, 5e-3, time.perf_counter)
        micros = {name: 1e6 * turn.least / steps for name, turn in turns.items()}
        for name, *_ in RULES:
            mine = {k: v for k, v in micros.items() if "/" not in k}
            mine |= {what: micros[f"{name}/{what}"] for what in ("plain", "compiled")}
            result.rows.append(Row(network.name, name, steps, mine))


def graphed(work: Callable[[], Tensor]) -> Run:
    """Work as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = work()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


def _repeated(run: Run, times: int) -> Run:
    def runs() -> None:
        for _ in range(times):
            run()

    return runs


def _waited(run: Run) -> Run:
    def waited() -> None:
        run()
        torch.cuda.synchronize()

    return waited


def diffusers(net: nn.Module, x: Tensor, steps: int) -> Run:
    """diffusers' DDIM loop as its documentation writes it."""
    lib = bring("diffusers")
    scheduler = lib.DDIMScheduler(clip_sample=False, set_alpha_to_one=False)

    def run() -> Tensor:
        scheduler.set_timesteps(steps, device=x.device)
        y = torch.randn_like(x)
        for t in scheduler.timesteps:
            y = scheduler.step(net(y, t.expand(len(y)).float()), t, y).prev_sample
        return y

    return run


def profiled(
    name: str, forward: Callable[[], sde.ForwardSDE], param: str, solver: Callable[[], sde.Solver | None]
) -> list[list]:
    """Kernels a step beside the network's own, and the waits and copies of the loop, in both precisions."""
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        model, steps = sde.ScoreModel(Identity(), forward(), param), 20
        rule = solver() or sde.solvers.default_solver(model)
        x, times = torch.randn(1000, 2, device="cuda", dtype=dtype), sde.solvers.default_times(model, steps)
        reverse = sde.ReverseSDE(model, rule.eta)
        for _ in range(2):  # the first run loads what it needs
            states = sde.trajectory(reverse, x, times, rule)
            next(states)
            next(states)  # the first step copies the table of times, without waiting for it
            with torch.profiler.profile() as profile:
                with torch.profiler.record_function("the loop"):
                    list(states)
                torch.cuda.synchronize()
        events = profile.events() or []
        (loop,) = [e.time_range for e in events if e.name == "the loop" and e.device_type == DeviceType.CPU]
        host = [e for e in events if e.device_type == DeviceType.CPU and loop.start <= e.time_range.start <= loop.end]
        waits = sum("Synchronize" in e.name or e.name in ("aten::item", "aten::_local_scalar_dense") for e in host)
        copies = sum("Memcpy" in e.name for e in host)
        kernels = sum("LaunchKernel" in e.name for e in host)
        rows.append(
            [name, str(dtype).removeprefix("torch."), f"{kernels / (steps - 1) / rule.calls:.1f}", waits, copies]
        )
    return rows


def report(result: Result) -> str:
    """The Markdown page."""
    alone = ("forward", "graph of one", "graph of all")
    rows = [
        [row.network, row.rule, row.steps]
        + [number(row.micros[k]) for k in (*alone, "plain", "compiled")]
        + [number(_floor(row) / row.micros[k]) for k in ("plain", "compiled")]
        + [number(row.micros.get("diffusers"))]
        for row in result.rows
    ]
    header = ["network", "sampler", "evaluations", "forward", "graph of one", "graph of all", "sample", "compile=True",
              "floor ÷ sample", "floor ÷ compiled", "diffusers DDIM"]  # fmt: skip
    return "\n\n".join([
        "# Sampling on a GPU: wall-clock µs per evaluation",
        f"{result.device}; {harness.machine()}. Peers: {harness.versions(PACKAGES) or 'none installed'}.",
        "The network alone: called from Python (forward), as a CUDA graph of one call, as a graph of all calls in a "
        "row. The floor is the quicker of the graphs. `sde.sample` draws its start, runs, and looks whether the end is "
        "finite; `compile=True` is its second call and later ones. Least of interleaved turns.",
        harness.table(header, rows, left=2),
        "## What the loop does on the device",
        "torch's profiler, a network that returns its input, from the second of 20 steps to the last (the first copies "
        "a table of times, without waiting). Waits are calls of the host that wait for the device or look at a value "
        "there, copies those between host and device; kernels are counted for each evaluation.",
        harness.table(["sampler", "precision", "kernels", "waits", "copies"], result.profile, left=2),
        "## Not measured",
        "\n".join(f"- {line}" for line in sorted(set(result.skipped))) or "Nothing was skipped.",
    ]) + "\n"  # fmt: skip


def _floor(row: Row) -> float:
    return min(row.micros["graph of one"], row.micros["graph of all"])


if __name__ == "__main__":
    import sys
    from pathlib import Path

    page = report(measure())
    (Path(sys.argv[1]) / "sampling_gpu.md").write_text(page, encoding="utf-8")
    print(page)
