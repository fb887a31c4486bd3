"""Requests to PVs on the event loop, and how a thread waits for their answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Final, NamedTuple

from appliance.client.channel import ChannelRequest, Waiter
from appliance.client.context import Context
from appliance.client.requests import GetRequest, PutRequest, RPCRequest
from appliance.pvdata.types import StructType
from appliance.pvdata.value import Value as NativeValue

__all__ = ["RPC", "Answers", "Ask", "Build", "Get", "Put", "Request"]

Build = Callable[[NativeValue], NativeValue]
"""Gets a value of the PV's type, and returns it with what is to be written."""


class Request(NamedTuple):
    """A pvRequest that is ready to be sent."""

    key: str
    """Equal requests have equal keys."""
    value: NativeValue
    options: dict[str, str]
    """The options of the whole request."""


class Get(NamedTuple):
    """Reads a PV."""

    name: str
    request: Request

    def begin(self, native: Context, waiter: Waiter) -> ChannelRequest:
        """Ask; the answer goes to ``waiter``."""
        channel = native.channel(self.name)
        asked = GetRequest(channel, waiter, self.request.key, self.request.value)
        channel.add(asked)
        return asked


class Put(NamedTuple):
    """Writes a PV."""

    name: str
    request: Request
    build: Build
    get: bool | Callable[[StructType], bool]
    """Whether ``build`` gets the present value, or what says so for a type."""

    def begin(self, native: Context, waiter: Waiter) -> ChannelRequest:
        """Ask; the answer goes to ``waiter``."""
        channel = native.channel(self.name)
        asked = PutRequest(channel, waiter, self.request.value, self.build, get=self.get)
        channel.add(asked)
        return asked


class RPC(NamedTuple):
    """Calls a PV."""

    name: str
    request: Request
    argument: NativeValue

    def begin(self, native: Context, waiter: Waiter) -> ChannelRequest:
        """Ask; the answer goes to ``waiter``."""
        channel = native.channel(self.name)
        asked = RPCRequest(channel, waiter, self.request.value, self.argument)
        channel.add(asked)
        return asked


Ask = Get | Put | RPC

_PENDING: Final = object()


class Answers:
    """The answers to requests that begin together, for one thread that waits for them.

    Args:
        asks: The requests.
        throw: Whether the first error ends the wait.
        is_abandoned: Whether nobody is to be woken any more, because the program ends.
    """

    __slots__ = (
        "_asks",
        "_begun",
        "_is_abandoned",
        "_latest",
        "_left",
        "_lock",
        "_over",
        "_throw",
        "error",
        "failed",
        "results",
    )

    def __init__(self, asks: Sequence[Ask], *, throw: bool, is_abandoned: Callable[[], bool]) -> None:
        self._asks = asks
        self._throw = throw
        self._is_abandoned = is_abandoned
        self._begun: list[ChannelRequest] = []
        self._left = len(asks)
        self._latest = 0.0
        """When the latest answer came."""
        self._over = False
        """Whether the thread was woken, or has given up."""
        self._lock = threading.Lock()
        self._lock.acquire()
        self.results: list[Any] = [_PENDING] * self._left
        """Values and errors, in the order of the requests; `pending` tells what has not come."""
        self.error: BaseException | None = None
        """The first error; only with ``throw``."""
        self.failed = 0
        """The number of the request that it came for."""

    # -- on the event loop ---------------------------------------------------------------------------

    def begin(self, native: Context) -> None:
        """Make the requests."""
        for index, ask in enumerate(self._asks):
            if self._over:
                return
            place = _Place(self, index)
            try:
                self._begun.append(ask.begin(native, place))
            except Exception as error:  # noqa: BLE001 - who waits gets it
                place.error(error)

    def cancel(self) -> None:
        """End what has no answer yet."""
        for request in self._begun:
            request.cancel()

    def arrived(self, index: int, answer: Any, *, failed: bool) -> None:
        """Take an answer, and wake the thread after the last one."""
        if self.results[index] is not _PENDING or self._over:
            return
        self.results[index] = answer
        self._left -= 1
        self._latest = monotonic()
        if failed and self._throw:
            self.error, self.failed = answer, index
        if (not self._left or self.error is not None) and not self._is_abandoned():
            self._over = True
            self._lock.release()

    # -- in the thread -------------------------------------------------------------------------------

    def wait(self, timeout: float | None) -> bool:
        """Wait for all answers, or for the first error if that ends the wait.

        Args:
            timeout: Seconds without any answer after which the wait ends; None waits for ever.

        Returns:
            Whether everything came.
        """
        lock = self._lock
        if timeout is None:
            return lock.acquire()
        left_s = min(timeout, threading.TIMEOUT_MAX)
        while left_s >= 0:
            if lock.acquire(timeout=left_s):
                return True
            left_s = min(left_s, self._latest + timeout - monotonic())
        self._over = True
        return False

    def pending(self, index: int) -> bool:
        """Whether the answer to a request has not come."""
        return self.results[index] is _PENDING

    def why(self, index: int) -> str:
        """Return why there is no answer yet."""
        for request in list(self._begun):
            waiter = request.waiter
            if isinstance(waiter, _Place) and waiter.index == index:
                return request.channel.why_waiting()
        return "the request was not begun yet"


class _Place(Waiter):
    """The place of one request among the answers."""

    __slots__ = ("answers", "index")

    def __init__(self, answers: Answers, index: int) -> None:
        self.answers = answers
        self.index = index

    def result(self, value: Any) -> None:
        self.answers.arrived(self.index, value, failed=False)

    def error(self, error: Exception) -> None:
        self.answers.arrived(self.index, error, failed=True)
