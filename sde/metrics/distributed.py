"""Metrics over several processes: each takes its share of the images, and what was found is put together.

Works wherever `torch.distributed` has been started (`torchrun`, `accelerate launch`), and does nothing where it has
not.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist

from sde.metrics.frechet import Moments


def shard(x: Tensor) -> Tensor:
    """This process's share of rows: every n-th, for n processes; all of them where there is one.

    Example:
        >>> shard(torch.arange(4.0))
        tensor([0., 1., 2., 3.])
    """
    rank, world = _place()
    return x[rank::world]


def gather(part: Tensor) -> Tensor:
    r"""Rows (n, \*D) of all processes, one rank's after the other's, on each of them; the n may differ.

    Example:
        >>> gather(torch.arange(3.0))
        tensor([0., 1., 2.])
    """
    world = _place()[1]
    if world == 1:
        return part
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    mine = part.detach().to(device).contiguous()
    counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world)]
    dist.all_gather(counts, torch.tensor([len(mine)], device=device))
    sizes = [int(n) for n in counts]
    padded = torch.cat([mine, mine.new_zeros(max(sizes) - len(mine), *mine.shape[1:])])
    rows = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(rows, padded)
    return torch.cat([x[:n] for x, n in zip(rows, sizes, strict=True)]).to(part.device)


def gather_moments(part: Moments) -> Moments:
    """Moments of what all processes have seen together, on each of them; the same bits everywhere.

    Example:
        >>> gather_moments(Moments(torch.randn(10, 2)))
        Moments(count=10, features=2)
    """
    world = _place()[1]
    if world == 1:
        return part
    d = int(gather(torch.tensor([len(part.mean)])).max())
    # A process that saw nothing takes part with zeros.
    mean = part.mean if part.count else part.mean.new_zeros(d)
    scatter = part.scatter if part.count else part.scatter.new_zeros(d, d)
    counts, means, scatters = gather(torch.tensor([part.count])), gather(mean[None]), gather(scatter[None])
    total = Moments()
    for count, m, s in zip(counts.tolist(), means, scatters, strict=True):
        other = Moments()
        other.count, other.mean, other.scatter = count, m, s
        total.merge(other)
    return total


def _place() -> tuple[int, int]:
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()
