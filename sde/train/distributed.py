r"""Several processes that train as one.

Every process draws the same batch from the same generator and takes its share, so that the numbers are those of one
process to rounding: a loss is the mean over equal shares, and so is its gradient. The network alone is wrapped, tensor
to tensor, by accelerate: in DDP, which keeps every weight everywhere and averages gradients, or FSDP2, which shards
weights, averages and the optimizer's state. What is kept is gathered whole and written by the first process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sde.score import ScoreModel

if TYPE_CHECKING:
    from accelerate import Accelerator


class Alone:
    """One process: what several have to do otherwise."""

    main = True
    size = 1
    sharded = False

    def share(self, n: int) -> slice | None:
        """Which of n samples are this process's; None for all."""
        return None

    def same(self, generator: torch.Generator) -> torch.Generator:
        """A generator in the same state everywhere."""
        return generator

    def level(self, module: nn.Module) -> None:
        """The same weights everywhere."""

    def wrap(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The network as it is called, and the optimizer of its weights."""
        return net, optimizer

    def apart(self, net: Callable[..., Tensor]) -> AbstractContextManager[None]:
        """Where gradients are not averaged yet."""
        return nullcontext()

    def settle(self, net: nn.Module) -> None:
        """Give back what a forward pass gathered, so that shards are all there is."""

    def mean(self, x: Tensor) -> Tensor:
        """Mean over the processes."""
        return x

    def whole(self, x: Tensor) -> Tensor:
        """A tensor that may be sharded, gathered."""
        return x


class Together(Alone):
    """One of several processes, under accelerate.

    Raises:
        ValueError: If accelerate was told of a precision of its own.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        if accelerator.mixed_precision != "no":
            raise ValueError(
                f'accelerator has mixed_precision={accelerator.mixed_precision!r}: make it with "no", and pass '
                "precision= to fit"
            )
        self.accelerator, self.size, self.rank = accelerator, accelerator.num_processes, accelerator.process_index
        self.main, self.device = accelerator.is_main_process, accelerator.device
        self.sharded = accelerator.distributed_type.name == "FSDP"
        if self.sharded and not accelerator.is_fsdp2:
            raise ValueError(
                "accelerator has fsdp_version=1, which keeps no weight of its own shape: use fsdp_version=2"
            )

    def share(self, n: int) -> slice:  # noqa: D102
        size = n // self.size
        return slice(self.rank * size, (self.rank + 1) * size)

    def place(
        self, model: ScoreModel, data: Tensor, cond: Mapping[str, Tensor]
    ) -> tuple[ScoreModel, Tensor, dict[str, Tensor]]:
        """Everything on this process's own device."""
        return model.to(self.device), data.to(self.device), {k: c.to(self.device) for k, c in cond.items()}

    def same(self, generator: torch.Generator) -> torch.Generator:  # noqa: D102
        state = self._first(generator.get_state())
        if generator.device.type != "cpu" and generator.device != self.device:
            generator = torch.Generator(self.device)
        generator.set_state(state)
        return generator

    def level(self, module: nn.Module) -> None:  # noqa: D102
        for value in module.state_dict().values():
            torch.distributed.broadcast(value, src=0)

    def _first(self, x: Tensor) -> Tensor:
        """The first process's tensor."""
        there = x.to(self.device)
        torch.distributed.broadcast(there, src=0)
        return there.to(x.device)

    def wrap(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:  # noqa: D102
        made, prepared = self.accelerator.prepare(net, optimizer)
        return made, prepared.optimizer

    def apart(self, net: Callable[..., Tensor]) -> AbstractContextManager[None]:  # noqa: D102
        hold = getattr(net, "no_sync", None)  # of DDP
        return nullcontext() if hold is None else hold()

    def settle(self, net: nn.Module) -> None:  # noqa: D102
        for module in net.modules() if self.sharded else ():
            if hasattr(module, "reshard"):
                module.reshard()  # pyright: ignore[reportCallIssue]

    def mean(self, x: Tensor) -> Tensor:  # noqa: D102
        total = x.detach().clone()
        torch.distributed.all_reduce(total)
        return total / self.size

    def whole(self, x: Tensor) -> Tensor:  # noqa: D102
        return x.full_tensor() if hasattr(x, "full_tensor") else x  # pyright: ignore[reportAttributeAccessIssue]


def team(accelerator: Accelerator | None) -> Alone:
    """The processes that train together: those of an accelerator, or of `accelerate launch`.

    Example:
        >>> team(None).size
        1
    """
    if accelerator is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise ImportError('accelerate is not installed: pip install "sde[images]"') from error
        accelerator = Accelerator(mixed_precision="no")
    return Together(accelerator) if accelerator is not None and accelerator.num_processes > 1 else Alone()


def local(x: Tensor) -> Tensor:
    """This process's shard of a tensor, sharing its memory."""
    return x.to_local() if hasattr(x, "to_local") else x  # pyright: ignore[reportAttributeAccessIssue]


def fill(own: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded."""
    if not hasattr(own, "to_local"):
        own.copy_(value)
        return
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = own
    own.copy_(distribute_tensor(value.to(own.device), sharded.device_mesh, sharded.placements))
