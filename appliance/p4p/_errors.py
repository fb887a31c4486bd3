"""The errors that programs for p4p catch, and how ours become them."""

from __future__ import annotations

from appliance.errors import (
    ApplianceError,
    ChannelClosedError,
    ConfigurationError,
    KeychainError,
    OperationTimeoutError,
)

__all__ = ["Cancelled", "Disconnected", "Finished", "RemoteError", "TimeoutError", "p4p_error"]

TimeoutError = TimeoutError  # noqa: PLW0127 - p4p's name for Python's own error is public here
"""No answer came in the time allowed: Python's own ``TimeoutError``, as in p4p."""


class Cancelled(RuntimeError):
    """This side ended the operation before its answer came."""

    def __init__(self, msg: str | None = None) -> None:
        super().__init__(msg or "Cancelled by client")


class Disconnected(RuntimeError):
    """The channel has no server at present."""

    def __init__(self, msg: str | None = None) -> None:
        super().__init__(msg or "Channel disconnected")


class Finished(Disconnected):
    """The subscription has delivered all updates that there will ever be."""

    def __init__(self, msg: str | None = None) -> None:
        super().__init__(msg or "Subscription Finished")


class RemoteError(RuntimeError):
    """The server, or the handler of a PV, answered with this error."""


class _LostError(RemoteError, Disconnected):
    """The server was lost after it was asked to do something: programs may look for either error."""


def p4p_error(error: BaseException) -> BaseException:
    """Return the error that p4p's programs expect in place of ``error``.

    Args:
        error: An error of ours; any other is returned as it is.
    """
    if not isinstance(error, ApplianceError):
        return error
    if isinstance(error, OperationTimeoutError):
        return TimeoutError(str(error))
    if isinstance(error, ChannelClosedError):
        return _LostError(str(error))
    if isinstance(error, ConfigurationError | KeychainError):
        return RuntimeError(str(error))
    return RemoteError(str(error))
