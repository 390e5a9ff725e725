r"""Any average after the run: snapshots of a few, combined.

The average of exponent g over N steps weighs the weights of time tau by p(tau) = (g + 1) tau^g / N^(g+1), so that two
of them have the inner product

    <p_a, p_b> = (a + 1)(b + 1) / (a + b + 1) m^(a+b+1) / (N_a^(a+1) N_b^(b+1)),      m = min(N_a, N_b).

The combination sum x_i p_i nearest to a profile p that nobody kept solves a linear system in these, under sum x_i = 1,
which leaves a weight that never changed as it is. The same x_i combine the snapshots' weights.
"""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sde.score import ScoreModel
from sde.train.checkpoint import CheckpointError, filled, header, read
from sde.train.ema import WIDEST, Power, exponent
from sde.train.manifest import describe
from sde.train.resume import averaged, put
from sde.train.run import Run

NAME = re.compile(r"\d+-[\d.e-]+\.safetensors")
"""Step, width."""

FAR = 0.1
"""Relative error of a profile from which on a reconstruction is warned of."""


def beside(checkpoint: Path) -> Path:
    """Folder of a run's snapshots."""
    return checkpoint.with_name(f"{checkpoint.stem}.averages")


def keep(run: Run, checkpoint: Path) -> None:
    """A snapshot of every average; each is a file that `sde.load` reads too."""
    ema, folder = run.settings.ema, beside(checkpoint)
    if not isinstance(ema, Power):
        return
    trained = {id(p) for p in run.parameters}
    still = [k for k, v in run.model.state_dict(keep_vars=True).items() if id(v) not in trained]
    for which, width in enumerate(ema.each):
        made = {"step": run.step, "sigma_rel": width, "still": still}
        manifest = {"model": describe(run.model), "snapshot": made}
        put(run, folder / _name(run.step, width), manifest, averaged(run, which))
    if run.team.main:
        _sweep(folder, {_name(n, width) for n in ema.due(run.settings.steps) if n <= run.step for width in ema.each})


def _name(step: int, width: float) -> str:
    return f"{step:08d}-{width}.safetensors"


def _sweep(folder: Path, ours: set[str]) -> None:
    """Remove what an earlier run left there, which would be taken for this one's."""
    for path in folder.iterdir():
        if NAME.fullmatch(path.name) and path.name not in ours:
            with contextlib.suppress(OSError):
                path.unlink()


class Snapshot(NamedTuple):
    """What a file says of itself."""

    path: Path
    step: int
    sigma_rel: float
    model: object
    still: frozenset[str]


def reconstruct(
    where: str | Path | Sequence[str | Path],
    sigma_rel: float,
    step: int | None = None,
    types: Sequence[type] = (),
    device: torch.device | str = "cpu",
) -> ScoreModel:
    r"""The model whose weights are averaged over another share of the run than was chosen when it began.

    Args:
        where: The run's checkpoint, the folder of its snapshots, or their paths.
        sigma_rel: Width of the power-function average, in (0, .28]; see `Power`.
        step: Average at this step of the run. Default: that of the last snapshot.
        types: Classes of one's own that the files may name.
        device: Where to put it.

    Raises:
        FileNotFoundError: If there are no snapshots.
        CheckpointError: If they are damaged, or of more than one model.

    References:
        Karras et al. (2024), 2312.02696, section 3.2 and algorithm 3.

    Example:
        >>> import tempfile, torch, sde
        >>> model = sde.ScoreModel(sde.nets.MLP(dim=2, width=8), sde.VP())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/model.safetensors"
        ...     ema = sde.train.Power((0.05, 0.10))
        ...     _ = sde.fit(model, torch.randn(100, 2), 40, ema=ema, checkpoint=path, progress=False)
        ...     again = sde.train.reconstruct(path, sigma_rel=0.15)
        >>> type(again).__name__
        'ScoreModel'
    """
    if not 0 < sigma_rel <= WIDEST:
        raise ValueError(f"sigma_rel must lie in (0, {WIDEST}], got {sigma_rel}: pass .1, say")
    found = _found(where)
    last = max(s.step for s in found) if step is None else step
    found = [s for s in found if s.step <= last]
    if not found:
        raise ValueError(f"step {step} lies before the first snapshot: leave it out, or pass a later one")
    x, error = combination([s.step for s in found], [s.sigma_rel for s in found], last, sigma_rel)
    if error > FAR:
        warnings.warn(
            f"{len(found)} snapshots make the average of sigma_rel={sigma_rel} with a relative error of {error:.2f}: "
            "keep more, or of two widths about it",
            stacklevel=2,
        )
    tensors = _combined(found, x)
    return filled({"model": found[-1].model}, tensors, types).to(device).eval()


def combination(steps: Sequence[float], widths: Sequence[float], last: float, width: float) -> tuple[np.ndarray, float]:
    """Coefficients of snapshots whose sum is nearest to one profile, and the relative error that is left.

    Example:
        >>> x, error = combination([50, 100, 100], [0.1, 0.1, 0.05], last=100, width=0.05)
        >>> [round(float(v), 6) + 0.0 for v in x], round(error, 3)
        ([0.0, 0.0, 1.0], 0.0)
    """
    n, g = np.asarray(steps, float), np.array([exponent(w) for w in widths])
    gram, target = _inner(n[:, None], g[:, None], n, g), _inner(n, g, last, exponent(width))
    own = float(_inner(last, exponent(width), last, exponent(width)))
    # In units of the target's norm: rows of like size for the least squares.
    gram, target = gram / own, target / own
    system = np.block([[gram, np.ones((len(n), 1))], [np.ones((1, len(n))), np.zeros((1, 1))]])
    x = np.linalg.lstsq(system, np.append(target, 1.0), rcond=1e-13)[0][:-1]
    return x, math.sqrt(max(0.0, 1 - 2 * target @ x + x @ gram @ x))


def _inner(n: np.ndarray | float, a: np.ndarray | float, m: np.ndarray | float, b: np.ndarray | float) -> np.ndarray:
    """Integral of the product of two profiles: exponents a, b up to steps n, m."""
    least = np.minimum(n, m)
    powers = a * np.log(least / n) + b * np.log(least / m)
    return (a + 1) * (b + 1) / (a + b + 1) * np.exp(powers) / np.maximum(n, m)


def _found(where: str | Path | Sequence[str | Path]) -> list[Snapshot]:
    """Snapshots in the order of their steps."""
    if isinstance(where, str | Path):
        folder = Path(where) if Path(where).is_dir() else beside(Path(where))
        paths = [p for p in folder.glob("*.safetensors") if NAME.fullmatch(p.name)] if folder.is_dir() else []
    else:
        folder, paths = None, [Path(p) for p in where]
    if not paths:
        raise FileNotFoundError(
            f"no snapshots at {folder or where}: train with ema=sde.train.Power((0.05, 0.10)) and a checkpoint"
        )
    found = sorted((_described(p) for p in paths), key=lambda s: (s.step, s.sigma_rel))
    other = next((s for s in found if s.model != found[0].model), None)
    if other is not None:
        raise CheckpointError(f"{other.path} is of another model than {found[0].path}: pass the snapshots of one run")
    return found


def _described(path: Path) -> Snapshot:
    manifest = header(path)
    made = manifest.get("snapshot")
    try:
        step, width, still = made["step"], made["sigma_rel"], frozenset(made["still"])  # pyright: ignore[reportOptionalSubscript]
        if not (type(step) is int and step > 0 and 0 < float(width) <= WIDEST):
            raise ValueError(f"step {step}, sigma_rel {width}")
        return Snapshot(path, step, float(width), manifest.get("model"), still)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is no snapshot of a power-function average ({error!r}): leave it out") from error


def _combined(found: Sequence[Snapshot], x: np.ndarray) -> dict[str, Tensor]:
    """Sums in float64; what is not trained is as in the last one."""
    last = read(found[-1].path)[1]
    sums = {k: torch.zeros_like(v, dtype=torch.float64) for k, v in last.items() if k not in found[-1].still}
    for snapshot, factor in zip(found, x.tolist(), strict=True):
        tensors = read(snapshot.path)[1]
        if tensors.keys() != last.keys():
            raise CheckpointError(f"{snapshot.path} holds other weights than {found[-1].path}: leave it out")
        for name, total in sums.items():
            total.add_(tensors[name], alpha=factor)
    return {k: sums[k].to(v.dtype) if k in sums else v for k, v in last.items()}
