"""How long-running work says how far it is, without knowing who listens."""

from typing import Protocol


class Progress(Protocol):
    """Called with the steps done, their total, and what is being done."""

    def __call__(self, done: int, total: int, what: str) -> None:
        """Take note that ``done`` of ``total`` steps of ``what`` are finished."""


def one_of(progress: Progress, index: int, count: int, pieces: str) -> Progress:
    """Tell of one of several equal pieces of work as of the whole: "simulating 4 K maps"."""

    def tell(done: int, total: int, what: str) -> None:
        progress(index * total + done, count * total, f"{what} {count} {pieces}")

    return tell


def silent(done: int, total: int, what: str) -> None:
    """Ignore all progress; what library functions use unless told otherwise."""
