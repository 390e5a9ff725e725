r"""DPM-Solver and DPM-Solver++: the rules of `sde.solvers.exponential.logsnr` with noise and with data prediction.

With D0 the newest value of x0, D1 the one before, r = h_before / h and H = (1 + eta^2) h, DPM-Solver++(2M) is

    x_s = c x_t + alpha_s (1 - e^{-H}) (D0 + (D0 - D1) / (2 r)) + n Z

and DPM-Solver's second order, with eps_m made at half of the step by a step of first order,

    x_s = c x_t - (1 + eta^2) sigma_s (e^h - 1) eps_m + n Z

with c and n of the table there. eta = 0 is the probability flow, eta = 1 the SDE version of the paper; what k-diffusion
calls eta is eta^2. Several formulas in use differ from the integral of the polynomial that they are derived from. The
"midpoint" kind is one of them, of the same order. The third order with memory as published is another: the term of the
second difference is half of what it should be, and the order is 2.
"""

from __future__ import annotations

from sde.solvers.exponential.logsnr import LogSNRRule


class DPMSolver(LogSNRRule):
    """DPM-Solver: noise prediction, one step at a time with `order` evaluations, or multistep with one.

    Order 2 evaluates at half of the step in log-SNR, order 3 at 1/3 and 2/3. With eta = 1 and multistep=True it is
    SDE-DPM-Solver; any other eta works alike. Steps to sigma = 0 are of first order and cost one evaluation.

    Args:
        order: 1, 2 or 3. Order 1 with eta = 0 is `DDIM`.
        multistep: Whether it takes the values of earlier steps in place of evaluations inside the step.
        solver_type: "midpoint", the paper's algorithms, or "heun", the integral of the polynomial through all values.
            A multistep rule of order 3 is of the latter kind from its third step on.
        lower_order_final: Multistep: lower the order of the last two steps to 2 and 1, as diffusers does below 15.
        start: Multistep of order 3: "ramp", as in the papers, begins with a step of order 1, which caps the observed
            order at 2; "full" begins with a singlestep rule of order 2, for one evaluation more.
        as_published: Multistep of order 3: halve the second difference, as the authors' code, k-diffusion and diffusers
            do. The rule is then of order 2.

    References:
        Lu et al. (2022), 2206.00927, algorithms 1 and 2; SDE versions: Lu et al. (2022), 2211.01095, section 5.

    Example:
        >>> import torch, sde
        >>> from sde.solvers.exponential.dpm import DPMSolver
        >>> model = sde.ExactScore(sde.Gaussian([3.0], 0.25), sde.VP())
        >>> sde.sample(model, (8, 1), steps=5, solver=DPMSolver(order=3)).shape
        torch.Size([8, 1])
    """

    def __init__(
        self,
        order: int = 3,
        multistep: bool = False,
        solver_type: str = "midpoint",
        lower_order_final: bool = False,
        start: str = "ramp",
        as_published: bool = False,
    ) -> None:
        super().__init__(order, "eps", multistep, solver_type, lower_order_final, start, as_published)


class DPMSolverPP(LogSNRRule):
    """DPM-Solver++: data prediction, multistep (2M, 3M) or one step at a time (2S, 3S), for any eta.

    | known as           | here                                                                      |
    |--------------------|---------------------------------------------------------------------------|
    | DPM++ 2M           | DPMSolverPP(2)                                                            |
    | DPM++ 2M SDE       | DPMSolverPP(2) with eta=1                                                 |
    | DPM++ 2M SDE Heun  | DPMSolverPP(2, solver_type="heun") with eta=1                             |
    | DPM++ 3M SDE       | DPMSolverPP(3, solver_type="heun", as_published=True) with eta=1          |
    | DPM++ 2S           | DPMSolverPP(2, multistep=False)                                           |
    | DPM++ SDE          | DPMSolverPP(2, multistep=False) with eta=1                                |

    Args:
        order: 1, 2 or 3. Order 1 is `DDIM` for eta = 0 and `Ancestral` for eta = 1.
        multistep: As in `DPMSolver`, and so are the others.
        solver_type: "midpoint" or "heun".
        lower_order_final: Multistep: lower the order of the last two steps to 2 and 1.
        start: Multistep of order 3: "ramp" or "full".
        as_published: Multistep of order 3: halve the second difference, for order 2.

    References:
        Lu et al. (2022), 2211.01095, algorithms 1 and 2 and section 5; k-diffusion's sample_dpmpp_2m, _2m_sde, _3m_sde
        and _sde.

    Example:
        >>> import torch, sde
        >>> from sde.solvers.exponential.dpm import DPMSolverPP
        >>> model = sde.ExactScore(sde.Gaussian([3.0], 0.25), sde.VP())
        >>> sde.sample(model, (8, 1), steps=10, solver=DPMSolverPP(order=2), eta=1.0).shape
        torch.Size([8, 1])
    """

    def __init__(
        self,
        order: int = 2,
        multistep: bool = True,
        solver_type: str = "midpoint",
        lower_order_final: bool = False,
        start: str = "ramp",
        as_published: bool = False,
    ) -> None:
        super().__init__(order, "x0", multistep, solver_type, lower_order_final, start, as_published)
