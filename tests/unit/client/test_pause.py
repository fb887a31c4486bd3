"""Octets during a pause: the request keeps what it gets, and is told when the pause is over."""

from __future__ import annotations

from types import SimpleNamespace

from appliance.client.pause import Kept


class Request:
    def __init__(self, *, lasts: bool = True, operation: object | None = True) -> None:
        self.LASTS = lasts
        self.operation = operation
        self.resumptions = 0

    def resumed(self) -> None:
        self.resumptions += 1


class Watched:
    operation = True

    def __init__(self, given: list[object]) -> None:
        self.given = given

    def update(self, *update: object) -> None:
        self.given.append(update)


def test_requests_that_last_are_told_when_the_pause_is_over() -> None:
    kept = Kept()
    lasts, once, closed = Request(), Request(lasts=False), Request(operation=None)
    channel = SimpleNamespace(requests=dict.fromkeys((lasts, once, closed)))
    kept.release([channel])  # type: ignore[list-item]
    assert (lasts.resumptions, once.resumptions, closed.resumptions) == (1, 0, 0)


def test_nothing_is_given_when_the_connection_is_gone() -> None:
    kept = Kept()
    given: list[object] = []
    monitor = Watched(given)
    kept.keep(monitor, SimpleNamespace(bits=1, store=[], overrun=0, size=10))  # type: ignore[arg-type]
    kept.clear()
    kept.release([])
    assert given == []
