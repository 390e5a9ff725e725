r"""What `sample` takes where nothing is said: the solver and the grid that fit the number of evaluations.

A polynomial through many values follows a smooth path closely and overshoots on one that bends between them, and so
does a corrector whose new value was made at a poor prediction. With n steps, for the flow of a scalar SDE:

    n           8 or fewer   9 to 35   36 to 80   more
    order       3            4         5          6
    corrector   no           yes       yes        yes

The corrector also damps what is quick in a network's error, which a plain rule of order 4 amplifies. The table and the
constants of `grids.data_scaled` were chosen on random mixtures of 1 to 16 dimensions, other than those that the
accuracy benchmark reports on; nothing in them depends on a model but its data's mean and scale. A matrix SDE gets
`MatrixAdams` on the quadratic grid, and a reverse SDE with noise `Heun`, of weak order 2.
"""

from __future__ import annotations

from torch import Tensor

from sde.forward import ScalarSDE
from sde.score import Model
from sde.solvers import grids
from sde.solvers.exponential.adams import Adams
from sde.solvers.matrix.gddim import MatrixAdams
from sde.solvers.onestep import Heun
from sde.solvers.solver import Solver


def default_solver(model: Model, eta: float | None = None, steps: int = 32) -> Solver:
    """The solver that `sample` takes by default for that number of steps.

    Example:
        >>> import sde
        >>> from sde.solvers import default_solver
        >>> model = sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.VP())
        >>> [default_solver(model, steps=n).k for n in (5, 10, 20, 50, 100)]
        [3, 4, 4, 5, 6]
    """
    if eta:
        return Heun()
    if not isinstance(model.sde, ScalarSDE):
        return MatrixAdams()
    order = 3 if steps <= 8 else 4 if steps <= 35 else 5 if steps <= 80 else 6
    return Adams(order, corrector=steps > 8)


def default_times(model: Model, steps: int) -> Tensor:
    """The grid that `sample` takes by default: `grids.data_scaled` at the scale of the model's data.

    For a matrix SDE it is `grids.quadratic`.
    """
    if not isinstance(model.sde, ScalarSDE):
        return grids.quadratic(model.sde, steps)
    return grids.data_scaled(model.sde, steps, scale=model.data_scale())
