"""One PUT or RPC that a handler works on."""

from __future__ import annotations

import contextlib
import logging
import os
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol
from weakref import ref

from appliance.p4p._unique import Unique
from appliance.p4p.util import _DefaultWorkQueue
from appliance.p4p.wrapper import Value
from appliance.pva.commands import CMD_PUT, CMD_PUT_GET, CMD_RPC
from appliance.pva.credentials import Credentials
from appliance.pvdata.types import StructType
from appliance.pvdata.value import Value as Fields
from appliance.server.operation import Operation

__all__ = ["ServerOperation", "server_queue"]

_log = logging.getLogger("appliance.p4p.server")

MAX_OPERATIONS: Final = 10_000
"""Requests of all clients together that handlers may work on: a client that asks, gives up and asks again leaves each behind."""

server_queue: Final = _DefaultWorkQueue(workers=1)
"""The thread on which callbacks run that have no queue of their own, in place of the threads of a server in C++."""

os.register_at_fork(after_in_child=server_queue._forget)

_begun = 0
_ended: deque[None] = deque()
"""One item for each request that is no longer worked on; counted and removed on the PVAccess thread."""


class Served(Protocol):
    """What an operation needs of its PV."""

    soon: Callable[..., None]
    """Calls a function on the PVAccess thread."""
    run_cancel: Callable[[Callable[[], object]], object] | None
    """Runs what `ServerOperation.onCancel` was given; None runs it where other callbacks of servers run."""

    def get(self, operation: Operation) -> None:
        """Answer with the current value."""


def _nothing() -> Fields:
    """Return what stands for a value that the client did not send: a structure without fields."""
    return Fields(StructType(()))


class ServerOperation(Unique):
    """A PUT or an RPC of a client, which waits until `done` is called.

    All methods may be called from any thread. If the handler loses this object without calling `done`, the client gets an
    error.
    """

    __slots__ = ("__weakref__", "_core", "_is_open", "_operation", "_token", "_value", "handler")

    def __init__(self, operation: Operation, value: Fields | None, core: Served) -> None:
        self._operation = operation
        self._value = value
        self._core = core
        self._is_open = True
        self._token = operation.state = ref(self)
        """What ``operation`` serves at present: a later request of the same operation has another."""
        self.handler: Any = None
        """What `onCancel` was given last."""

    @classmethod
    def begin(cls, operation: Operation, value: Fields | None, core: Served) -> ServerOperation | None:
        """Return what a handler gets of a request; None if handlers have too many: then it was refused.

        Called on the PVAccess thread, as `end` is.
        """
        global _begun  # noqa: PLW0603 - one bound for the process
        while _ended:
            _ended.popleft()
            _begun -= 1
        if _begun >= MAX_OPERATIONS:
            operation.fail(f"the server has {MAX_OPERATIONS} requests in progress; try again later")
            return None
        _begun += 1
        return cls(operation, value, core)

    @staticmethod
    def end(operation: Operation) -> None:
        """Tell the handler of a request that the client does not wait for it any more."""
        known, operation.state = operation.state, None
        op = None if known is None else known()
        if op is None or op.handler is None or not op._is_open:
            return
        run = op._core.run_cancel or server_queue().push
        run(partial(_cancel, op.handler))

    # -- who and what --------------------------------------------------------------------------------

    def pvRequest(self) -> Value:
        """Return the request's options and fields, as the client sent them."""
        request = self._operation.wire.request
        return Value._of(_nothing() if request is None else request.clone())

    def value(self) -> Any:
        """Return what the client sent: the value of a PUT, with what it changes marked, or the argument of an RPC.

        An RPC without an argument has a structure without fields.
        """
        return Value._of(_nothing() if self._value is None else self._value)

    def name(self) -> str:
        """Return the PV's name as the client wrote it."""
        return self._operation.name

    def peer(self) -> str:
        """Return the client's address and port."""
        return self._operation.peer.peer

    def account(self) -> str:
        """Return the client's name: from its certificate over TLS, else the one that it claims, or ``anonymous``.

        `credentials` says which of these it is.
        """
        return self._operation.peer.account or "anonymous"

    def roles(self) -> set[str]:
        """Return the groups that this host's user database gives to `account`."""
        return set(self._operation.peer.roles)

    def credentials(self) -> Credentials:
        """Return all that is known of the client. p4p has no such method.

        Returns:
            A tuple with names: ``method`` is ``x509`` if a certificate proves ``account``, ``ca`` if the client merely claims
            it, else ``anonymous``. ``authority``, ``issuer_id``, ``serial`` and ``san`` tell of the certificate.
        """
        return self._operation.peer

    # -- the end -------------------------------------------------------------------------------------

    def done(self, value: Value | None = None, error: str | None = None) -> None:
        """Answer the client. Only the first call counts.

        Args:
            value: The result of an RPC; None is a result too. A PUT has none.
            error: Why the request is refused; then ``value`` is not used.

        Raises:
            TypeError: ``value`` is no Value, or ``error`` no text.
            ValueError: ``error`` is empty, or a PUT is answered with a value.
        """
        result: Fields | None = None
        if error is not None:
            if not isinstance(error, str):
                raise TypeError(f"error must be a text, not {type(error).__name__}")
            if not error:
                raise ValueError("the text of an error must not be empty")
            try:
                error.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError:
                # It could not be sent, and the client would wait for ever.
                error = error.encode("utf-8", "backslashreplace").decode()
        elif value is not None:
            if not isinstance(value, Value):
                raise TypeError(f"the result of an RPC must be a Value, not {type(value).__name__}")
            if self._operation.command in (CMD_PUT, CMD_PUT_GET):
                raise ValueError("a PUT has no result; call done() without a value, and post() what changed")
            result = value._fields.to_value()
        if self._is_open:
            self._is_open = False
            _ended.append(None)
            self._core.soon(_answer, self._operation, self._token, self._core, result, error)

    def onCancel(self, handler: Callable[[], object] | None) -> None:
        """Have a function called when the client cancels the request or loses its connection before `done`.

        Args:
            handler: Called without arguments; None calls nothing. It is forgotten with this object.
        """
        self.handler = handler

    def info(self, msg: str) -> None:
        """Do nothing, as p4p does; `warn` sends a text."""

    def warn(self, msg: str) -> None:
        """Send a text for the log of the client. p4p sends nothing."""
        self._core.soon(self._operation.warn, str(msg))

    def __del__(self) -> None:
        # This may run at any time and on any thread: it must take no lock.
        if not getattr(self, "_is_open", False):  # it was never made in full
            return
        _ended.append(None)
        if self._operation.alive:
            with contextlib.suppress(RuntimeError):  # the interpreter ends
                self._core.soon(_lost, self._operation, self._token)


def _answer(
    operation: Operation, token: object, core: Served, result: Fields | None, error: str | None
) -> None:
    if operation.state is not token:
        return
    operation.state = None
    if error is not None:
        operation.fail(error)
    elif operation.command == CMD_RPC:
        operation.reply(result)
    elif operation.command == CMD_PUT_GET:
        core.get(operation)
    else:
        operation.done()


def _lost(operation: Operation, token: object) -> None:
    if not operation.alive or operation.state is not token:
        return
    operation.state = None
    _log.warning(
        "the handler of %.256r has lost a request without calling done(); the client gets an error",
        operation.name,
    )
    operation.fail("the server's handler has ended without an answer; tell the author of the server")


def _cancel(handler: Callable[[], object]) -> None:
    try:
        handler()
    except Exception:  # noqa: BLE001 - a defect of the handler's must not end the thread that calls others
        _log.exception("the function for a cancelled request failed: %r", handler)
