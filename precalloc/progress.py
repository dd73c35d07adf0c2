"""How long-running work says how far it is, without knowing who listens."""

from typing import Protocol


class Progress(Protocol):
    """Called with the steps done, their total, and what is being done."""

    def __call__(self, done: int, total: int, what: str) -> None:
        """Take note that ``done`` of ``total`` steps of ``what`` are finished."""


def silent(done: int, total: int, what: str) -> None:
    """Ignore all progress; what library functions use unless told otherwise."""
