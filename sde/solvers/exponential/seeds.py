r"""SEEDS: exponential Runge–Kutta rules for the reverse SDE, whose stages see the noise of the step.

SEEDS-3 with data prediction, at fractions 1/3 and 2/3 of the step in half log-SNR, H = (1 + eta^2) h and the moments
J_k and c of `sde.solvers.exponential.logsnr` (J at -H, or at the stage's own part of it):

    x_1 = c_1 x_t - alpha_1 J_0 D_t                        + I_1
    x_2 = c_2 x_t - alpha_2 (J_0 D_t + 2 J_1 (D_1 - D_t))  + I_2
    x_s = c   x_t - alpha_s (J_0 D_t + 3/2 J_1 (D_2 - D_t)) + I_s

The noises I are the Itô integral of the linear part up to there, of one Brownian motion: drawn in independent parts and
summed as I_b = c_{a,b} I_a + n_{a,b} Z. So the rule has weak order 2, which no rule has that draws noise for the stages
apart from the step's. Normal numbers are those of the path's increments, and the strong order is 1.
"""

from __future__ import annotations

from sde.solvers.exponential.logsnr import LogSNRRule


class SEEDS(LogSNRRule):
    """Stochastic explicit exponential derivative-free solver: `order` evaluations a step, for any eta.

    Args:
        order: 1, 2 or 3; of SEEDS-1, SEEDS-2 and SEEDS-3. Weak order 1, 2 and 2; on the flow 1, 2 and 3.
        predict: "x0" (data) or "eps" (noise prediction).
        solver_type: "midpoint", the paper's algorithms, or "heun", the integral of the polynomial through all stages.

    References:
        Gonzalez et al. (2023), 2305.14267: SEEDS-1, SEEDS-2 and SEEDS-3.

    Example:
        >>> import torch, sde
        >>> from sde.solvers.exponential.seeds import SEEDS
        >>> model = sde.ExactScore(sde.Gaussian([3.0], 0.25), sde.EDM())
        >>> sde.sample(model, (8, 1), steps=5, solver=SEEDS(order=3)).shape
        torch.Size([8, 1])
    """

    eta = 1.0

    def __init__(self, order: int = 3, predict: str = "x0", solver_type: str = "midpoint") -> None:
        super().__init__(order, predict, multistep=False, solver_type=solver_type)
