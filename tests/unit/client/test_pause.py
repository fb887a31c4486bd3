"""Octets during a pause: the request gets them at once, and is told when the pause is over."""

from __future__ import annotations

from types import SimpleNamespace

from appliance.client.pause import Kept


class Request:
    def __init__(self) -> None:
        self.operation: object | None = object()
        self.resumptions = 0

    def resumed(self) -> None:
        self.resumptions += 1


def test_a_request_that_got_octets_is_told_once_when_the_pause_is_over() -> None:
    kept = Kept()
    one, closed, other = Request(), Request(), Request()
    for request in (one, one, closed):
        kept.note(request)  # type: ignore[arg-type]
    closed.operation = None
    kept.release()
    kept.release()
    assert (one.resumptions, closed.resumptions, other.resumptions) == (1, 0, 0)


def test_nobody_is_told_when_the_connection_is_gone() -> None:
    kept = Kept()
    request = Request()
    kept.note(request)  # type: ignore[arg-type]
    kept.keep(request, SimpleNamespace(bits=1, store=[], overrun=0))  # type: ignore[arg-type]
    kept.clear()
    kept.release()
    assert request.resumptions == 0
