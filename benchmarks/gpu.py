r"""Images on one GPU: trained and sampled images per second, ours and diffusers', and the share of the matrix rate.

A training step is all of it: a batch of uint8 images drawn and flipped on the GPU, EDM's denoising loss, the gradient
under bfloat16 autocast, its norm clipped, AdamW in one kernel, the average of the weights. Every network runs in the
same step, at channels_last, with cuDNN choosing its algorithms by trial; compiled means `torch.compile` of the network
alone. Operations are counted by torch, two to a multiplication, and a step counts as three forward passes:

    share of the matrix rate = 3 × operations × images per second / rate of an 8192³ product in bfloat16.

Items run in the order of their importance and are skipped, by name, when the time is over.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType  # pyright: ignore[reportPrivateImportUsage]

import sde
from benchmarks import gpu_nets, harness
from benchmarks.harness import number

ITEMS = (
    "unet", "diffusers-unet", "dit-b", "dit-s", "sampling", "unet-16", "diffusers-unet/eager", "unet/eager",
    "diffusers-dit-b", "unet-26", "dit-b-plain", "diffusers-dit-s", "ddpm", "unet-group",
)  # fmt: skip
LONGEST = {"unet": 110, "ddpm": 130, "diffusers-unet": 150, "sampling": 80}
"""Seconds that an item may take, compilation included; others: 60."""


@dataclass
class Row:
    name: str
    parameters: float
    operations: float
    trained: float
    forward: float
    gibibytes: float
    seconds: float


@dataclass
class Result:
    """Images per second by item, the matrix rate in operations per second, and what was not measured."""

    device: str
    batch: int
    matrix: float = float("nan")
    rows: list[Row] = field(default_factory=list)
    sampling: list[list[object]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


class Bench:
    """The device and the sizes of a run; `tiny` is a rehearsal on a CPU."""

    def __init__(self, tiny: bool, batch: int = 256) -> None:
        self.tiny, self.batch = tiny, 4 if tiny else batch
        self.device = torch.device("cuda" if torch.cuda.is_available() and not tiny else "cpu")
        self.seconds, self.least = (0.05, 1) if tiny else (2.0, 8)
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def rate(self, run: Callable[[], object]) -> float:
        """Calls per second: the best of three turns, after as many calls as settle compilers and caches."""
        for _ in range(2 if self.tiny else 5):
            run()
        self.wait()
        began = time.perf_counter()
        run()
        self.wait()
        calls = max(self.least, round(self.seconds / 3 / max(1e-6, time.perf_counter() - began)))
        best = 0.0
        for _ in range(3):
            began = time.perf_counter()
            for _ in range(calls):
                run()
            self.wait()
            best = max(best, calls / (time.perf_counter() - began))
        return best

    def network(self, item: str) -> nn.Module:
        name, _, how = item.partition("/")
        torch.manual_seed(0)
        net = self.placed(gpu_nets.NETWORKS[name](self.tiny))
        if how != "eager":
            net.compile(backend="eager" if self.tiny else "inductor", dynamic=False)
        return net

    def placed(self, net: nn.Module) -> nn.Module:
        net.to(self.device)
        return net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16)


class Training:
    """A whole training step of a network."""

    def __init__(self, bench: Bench, net: nn.Module) -> None:
        self.bench, self.model = bench, sde.ScoreModel(net, sde.EDM(), "edm", scale=0.5).train()
        n = 64 if bench.tiny else 50_000
        self.data = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, device=bench.device)
        self.weights = list(net.parameters())
        self.values = [p.detach() for p in self.weights]
        self.ema = [p.clone() for p in self.values]
        self.optimizer = torch.optim.AdamW(self.weights, lr=1e-4, fused=True)

    def images(self) -> Tensor:
        b, device = self.bench.batch, self.bench.device
        x = self.data[torch.randint(len(self.data), (b,), device=device)].float().div_(127.5).sub_(1)
        x = torch.where(torch.rand(b, 1, 1, 1, device=device) < 0.5, x, x.flip(3))
        return x.to(memory_format=torch.channels_last)

    def step(self) -> Tensor:
        x = self.images()
        sigma = torch.exp(1.2 * torch.randn(len(x), device=x.device) - 1.2)  # EDM's time is sigma
        with self.bench.autocast():
            loss = sde.train.denoising(self.model, x, sigma, torch.randn_like(x))
        for p in self.weights:
            p.grad = None
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, 1.0, foreach=True)
        self.optimizer.step()
        torch._foreach_lerp_(self.ema, self.values, 0.001)  # pyright: ignore[reportPrivateImportUsage]
        return loss


def matrix_rate(bench: Bench) -> float:
    """Operations per second of a square product in bfloat16."""
    n = 256 if bench.tiny else 8192
    a, b = (torch.randn(n, n, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 * bench.rate(lambda: a @ b)


def measure(tiny: bool = False, only: Sequence[str] = (), minutes: float = 8.0, batch: int = 256) -> Result:
    """The items, one after the other, until the time is over."""
    bench, began = Bench(tiny, batch), time.monotonic()
    device = torch.cuda.get_device_name() if bench.device.type == "cuda" else "a CPU, for rehearsal only"
    result = Result(device, bench.batch)
    result.matrix = matrix_rate(bench)
    print(f"matrix product in bfloat16: {result.matrix / 1e12:.4g} TFLOP/s", flush=True)
    for item in only or ITEMS:
        start = time.monotonic()
        if start - began + LONGEST.get(item, 60) > 60 * minutes:
            result.skipped.append(f"{item}: {minutes:g} minutes are over")
            continue
        try:
            with attention(item):
                line = sampling(bench, result) if item == "sampling" else throughput(bench, item, result)
        except Exception as error:  # one network that cannot be compiled must not end the run
            line = f"failed with {type(error).__name__}: {str(error)[:300]}"
            result.skipped.append(f"{item}: {line}")
        print(f"{item}: {line}; {time.monotonic() - start:.0f} s of {time.monotonic() - began:.0f}", flush=True)
        gc.collect()
        torch._dynamo.reset()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    return result


def attention(item: str) -> AbstractContextManager[None]:
    """cuDNN's attention before others, for an item that asks for it: what torch takes otherwise is flash attention."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if item.partition("/")[2] != "cudnn":
        return nullcontext()
    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(order, set_priority=True)


def throughput(bench: Bench, item: str, result: Result) -> str:
    """Whole training steps, and forward passes alone."""
    parameters, operations = gpu_nets.size(item.partition("/")[0], bench.tiny)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.monotonic()
    training = Training(bench, bench.network(item))
    training.step()
    bench.wait()
    compiled = time.monotonic() - began
    trained = bench.batch * bench.rate(training.step)
    memory = torch.cuda.max_memory_allocated() / 2**30 if bench.device.type == "cuda" else float("nan")
    print(f"  {item}: {trained:.0f} images/s trained, first step after {compiled:.0f} s", flush=True)
    x, c = training.images(), torch.rand(bench.batch, device=bench.device)
    net = training.model.net.eval()
    with torch.no_grad(), bench.autocast():
        forward = bench.batch * bench.rate(lambda: net(x, c))
    result.rows.append(Row(item, parameters, operations, trained, forward, memory, compiled))
    share = 3e9 * operations * trained / result.matrix
    return (
        f"{parameters:.1f}M parameters, {operations:.2f} GFLOP, {trained:.0f} images/s trained ({share:.1%} of the "
        f"matrix rate), {forward:.0f} forward, {memory:.1f} GiB"
    )


def sampling(bench: Bench, result: Result) -> str:
    """`sde.sample` beside the forward passes that it cannot do without."""
    torch.manual_seed(0)
    net = bench.placed(gpu_nets.NETWORKS["unet"](bench.tiny)).eval()
    half = sde.nets.Cast(net)
    half.compile(backend="eager" if bench.tiny else "inductor", dynamic=False)
    model = sde.ScoreModel(half, sde.EDM(), "edm", scale=0.5).to(bench.device).eval()
    x = torch.randn(bench.batch, 3, 32, 32, device=bench.device).to(memory_format=torch.channels_last)
    c, steps = torch.rand(bench.batch, device=bench.device), 3 if bench.tiny else 18
    lines = []
    with torch.no_grad():
        forward = bench.batch * bench.rate(lambda: half(x, c))
        for how in (False, True):
            made = bench.batch * bench.rate(
                lambda how=how: sde.sample(model, tuple(x.shape), steps, progress=False, compile=how)
            )
            share = made * steps / forward
            result.sampling.append(["compile=True" if how else "plain", steps, *map(number, (forward, made, share))])
            lines.append(f"{'captured' if how else 'plain'} {made:.0f} images/s, {share:.3f} of forward")
    return ", ".join(lines)


def report(result: Result) -> str:
    """The Markdown page."""
    by = {row.name: row.trained for row in result.rows}
    rows = []
    for row in result.rows:
        name, slash, how = row.name.partition("/")
        kind = next((kind for kind in ("dit-b", "dit-s") if kind in name), "unet")
        peer = by.get(f"diffusers-{kind}{slash}{how}")
        share = 3e9 * row.operations * row.trained / result.matrix
        ratio = row.trained / peer if peer else None
        sizes = map(number, (row.parameters, row.operations))
        speeds = [f"{row.trained:.0f}", number(ratio), f"{100 * share:.1f}", f"{row.forward:.0f}"]
        rows.append([row.name, *sizes, *speeds, number(row.gibibytes), f"{row.seconds:.0f}"])
    header = ["network", "parameters, 10⁶", "forward, 10⁹ operations", "trained, images/s", "÷ diffusers",
              "% of matrix rate", "forward, images/s", "GiB", "first step, s"]  # fmt: skip
    return "\n\n".join([
        "# Images on one GPU: training steps, forward passes, samples",
        f"{result.device}; {harness.machine()}. Peers: {harness.versions(['diffusers'])}. 32×32×3, batch "
        f"{result.batch}, bfloat16 autocast, channels_last. An 8192³ product in bfloat16: "
        f"{result.matrix / 1e12:.4g} TFLOP/s.",
        "A training step: uint8 images on the GPU, flips, EDM's loss, clipping, AdamW, average of the weights. "
        "Compiled by `torch.compile` unless it says eager. `÷ diffusers`: over diffusers' network of the same kind, "
        "run the same way; compare at equal parameters and operations.",
        harness.table(header, rows),
        "## Sampling: `sde.sample` with the network in bfloat16, compiled",
        "Forward: the same network alone, called from Python. Share: samples × evaluations over forward passes.",
        harness.table(["sample", "evaluations", "forward, images/s", "samples/s", "share"], result.sampling),
        "## Not measured",
        "\n".join(f"- {line}" for line in result.skipped) or "Nothing was skipped.",
    ]) + "\n"  # fmt: skip


def profile(item: str, tiny: bool = False, top: int = 15, steps: int = 5, batch: int = 256) -> str:
    """Where a training step's time goes: the kernels that take most of it."""
    bench = Bench(tiny, batch)
    training = Training(bench, bench.network(item))
    for _ in range(6):
        training.step()
    bench.wait()
    with torch.profiler.profile() as seen:
        for _ in range(steps):
            training.step()
        bench.wait()
    on_device = bench.device.type == "cuda"
    spent: dict[str, list[float]] = {}
    for event in seen.key_averages():
        micros = event.self_device_time_total if on_device else event.self_cpu_time_total
        if micros and (not on_device or event.device_type == DeviceType.CUDA):
            row = spent.setdefault(event.key, [0.0, 0.0])
            row[0] += micros / steps / 1e3
            row[1] += event.count / steps
    total = sum(ms for ms, _ in spent.values())
    rows = [
        [name[:150].replace("|", "/"), f"{ms:.3f}", f"{100 * ms / total:.1f}", f"{calls:.1f}"]
        for name, (ms, calls) in sorted(spent.items(), key=lambda pair: -pair[1][0])[:top]
    ]
    kinds = {"triton": 0.0, "other": 0.0}
    for name, (ms, _) in spent.items():
        kinds["triton" if name.startswith("triton") else "other"] += ms
    said = ", ".join(f"{name} {ms:.2f} ms" for name, ms in kinds.items())
    table = harness.table(["kernel", "ms a step", "%", "calls a step"], rows)
    return f"## {item}: {total:.2f} ms of kernels a step of {bench.batch} images ({said})\n\n{table}\n"
