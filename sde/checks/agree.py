r"""What every law ends in: a number got, a number expected, and the size of what was added up to make them.

Rounding makes an error of a few eps times the sum of the absolute terms, however much of that sum cancels. So two
tensors agree where

    |got - expected| <= rtol * size,        size = the sum of the absolute terms,

and a difference beyond that is a wrong formula, not rounding. A failure names the law, the object, the quantity, the
time, both numbers and, where it can, what to look at.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sde.checks.violation import LawViolation

LAWS = {
    "0": "moments follow the published coefficients",
    "1": "x = A x0 + L eps, with its inverses and its density",
    "2": "velocity = drift - G G' score / 2",
    "3": "rates are derivatives; transition and bridge have the right joint law",
    "4": "finite on [t_min, t_max], the same in every shape, dtype and spelling of t",
    "5": "the score is the gradient of the log-density",
    "6a": "every parameterisation gives the same point",
    "6b": "a solver keeps the orders and the calls that it declares",
    "6c": "a solver's samples are no further from the truth than the truth from itself",
    "7": "up and then down the flow is the identity",
    "8": "guidance of no strength changes nothing",
    "9": "the likelihood is that of the marginal at t_min",
    "10": "same generator, same bits, whatever the batch",
    "11": "a coupled model has a velocity and no score",
}


def name_of(subject: object) -> str:
    """A short name for messages: the repr of a dataclass, else the class; words stay words."""
    if isinstance(subject, str):
        return subject
    return repr(subject) if dataclasses.is_dataclass(subject) else type(subject).__name__


def violated(law: str, subject: object, what: str, t: object = None, hint: str = "") -> LawViolation:
    """The exception for a broken law."""
    when = "" if t is None else f"at t = {_words(t)} "
    return LawViolation(law, name_of(subject), f"{when}{what} (the law: {LAWS[law]}){'. ' + hint if hint else ''}")


def _words(t: object) -> str:
    if isinstance(t, Tensor):
        t = t.item() if t.ndim == 0 else [float(f"{u:.6g}") for u in t.tolist()]
    return f"{t:.6g}" if isinstance(t, float | int) else str(t)


def agree(
    law: str,
    subject: object,
    what: str,
    got: Tensor,
    expected: Tensor | float,
    size: Tensor | float | None = None,
    *,
    t: object = None,
    rtol: float | None = None,
    hint: str = "",
) -> None:
    """Raise `LawViolation` unless |got - expected| <= rtol * size in every entry.

    Args:
        law: Its number, a key of `LAWS`.
        subject: What is checked.
        what: Name of the quantity.
        got: What the subject says.
        expected: What the law says; broadcasts against got.
        size: Sum of the absolute terms; broadcasts against got. Default: the largest |expected| of a row.
        t: Time, for the message.
        rtol: Default 200 eps of the dtype of got.
        hint: What to look at.

    Example:
        >>> one = torch.ones(2)
        >>> agree("0", "VP", "alpha", one, one)
        >>> try:
        ...     agree("0", "VP", "alpha", one, 2 * one, t=0.5)
        ... except LawViolation as violation:
        ...     print(str(violation)[:59])
        law 0 is broken by VP: at t = 0.5 alpha[0] is 1, expected 2
    """
    got = got.detach()
    wanted = torch.as_tensor(expected).detach().to(got).expand_as(got)
    if size is None:
        size = wanted.abs().flatten(1).amax(1).reshape(-1, *[1] * (got.ndim - 1)) if got.ndim > 1 else wanted.abs()
    rtol = 200 * torch.finfo(got.dtype).eps if rtol is None else rtol
    allowed = (rtol * torch.as_tensor(size).detach().to(got)).expand_as(got)
    error = (got - wanted).abs()
    fine = (error <= allowed) | (got == wanted)
    if bool(fine.all()):
        return
    # The worst entry; one that is not finite is worse than any.
    excess = torch.nan_to_num((error / allowed).double(), nan=torch.inf).masked_fill(fine, -1.0)
    at = tuple(int(i) for i in torch.unravel_index(excess.argmax(), got.shape)) if got.ndim else ()
    place = f"[{', '.join(map(str, at))}]" if got.numel() > 1 else ""
    numbers = f"{float(got[at]):.7g}, expected {float(wanted[at]):.7g}"
    raise violated(
        law,
        subject,
        f"{what}{place} is {numbers} (error {float(error[at]):.2g}, allowed {float(allowed[at]):.2g})",
        t,
        hint,
    )
