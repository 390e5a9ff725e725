"""What a check raises: which law is broken, by whom, by how much."""

from __future__ import annotations


class LawViolation(AssertionError):
    """A law of `sde.checks` that does not hold.

    Args:
        law: The law's number, as in the documentation: "6b".
        who: The object under test, in words.
        what: What was measured, what was expected, and where to look.

    Example:
        >>> print(LawViolation("7", "Euler on VP", "up and down differ by .2"))
        law 7 is broken by Euler on VP: up and down differ by .2
    """

    def __init__(self, law: str, who: str, what: str) -> None:
        super().__init__(f"law {law} is broken by {who}: {what}")
        self.law, self.who, self.what = law, who, what
