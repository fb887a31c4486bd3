"""Jobs of the store on their way: who waits for one, and what is known of it while a database server is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from appliance.cms.transaction import Job
from appliance.errors import DatabaseLost

__all__ = ["NOT_KNOWN", "Again", "Question", "Results", "Unsure", "Waiting", "merged"]

NOT_KNOWN: Final = "it is not known whether this was done"
Results = list[tuple[Any, Exception | None]]


class Waiting:
    """A job, and who waits for it. Only the event loop settles ``future``; the writer says what it does."""

    __slots__ = (
        "future",
        "is_late",
        "is_open",
        "job",
        "keys",
        "subjects",
        "timer",
        "trial",
        "undone",
    )

    def __init__(
        self,
        job: Job,
        subjects: tuple[str, ...] = (),
        keys: tuple[tuple[str, str], ...] = (),
        future: asyncio.Future[Any] | None = None,
        *,
        trial: bool = False,
        undone: Callable[[], None] | None = None,
    ) -> None:
        self.job = job
        self.subjects = subjects
        self.keys = keys
        self.future = future
        self.trial = trial
        self.undone = undone
        """Called on the event loop when it is known that nothing was done, after its waiter has given up."""
        self.timer: asyncio.TimerHandle | None = None
        self.is_late = False
        """Whether its waiter has been told that the database is lost."""
        self.is_open = False
        """Whether its commit was sent, and nothing is known of it."""

    def expire(self) -> None:
        """Tell the waiter, on its event loop, that the database is lost."""
        if self.future is None or self.future.done():
            return
        # In this order: the writer says first that it commits, and looks then who has given up.
        self.is_late = True
        # Where the server is, and what it answers, is for the log: this goes to whoever asked.
        self.future.set_exception(DatabaseLost(f"the certificate database cannot be reached; {self.fate}"))

    @property
    def fate(self) -> str:
        """What is known of the job when its waiter gives up."""
        if self.is_open:
            return f"{NOT_KNOWN}; ask again, it is safe"
        return "nothing was done"


class Question(NamedTuple):
    """A commit whose answer was lost."""

    token: str
    group: Sequence[Waiting]
    results: Results
    head: tuple[int, str]


class Again(Exception):  # noqa: N818 - it never leaves the store
    """Somebody has given up in the last moment."""


class Unsure(Exception):  # noqa: N818 - it never leaves the store
    """It is not known whether a commit came about."""

    def __init__(self, question: Question) -> None:
        super().__init__()
        self.question = question


def merged(group: Sequence[Waiting], done: Sequence[Waiting], results: Results) -> Results:
    """Return results for all of a group of which only ``done`` was done; the others' waiters know already."""
    if len(done) == len(group):
        return results
    of = {id(item): result for item, result in zip(done, results, strict=True)}
    nothing = (None, DatabaseLost("nothing was done"))
    return [of.get(id(item), nothing) for item in group]
