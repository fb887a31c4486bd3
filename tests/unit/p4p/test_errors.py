"""The errors are those that programs for p4p catch."""

from __future__ import annotations

import builtins

import pytest

from appliance import errors
from appliance.p4p import _errors
from appliance.p4p.client import asyncio, raw, thread


def test_each_error_is_what_p4p_says_it_is() -> None:
    assert _errors.TimeoutError is builtins.TimeoutError
    for kind in (_errors.Cancelled, _errors.Disconnected, _errors.RemoteError):
        assert issubclass(kind, RuntimeError)
    assert issubclass(_errors.Finished, _errors.Disconnected)
    assert str(_errors.Disconnected()) == "Channel disconnected"
    assert str(_errors.Cancelled()) == "Cancelled by client"
    assert str(_errors.Finished()) == "Subscription Finished"


@pytest.mark.parametrize("module", [raw, thread, asyncio])
def test_the_clients_share_their_errors(module: object) -> None:
    for name in ("Cancelled", "Disconnected", "Finished", "RemoteError"):
        assert getattr(module, name) is getattr(_errors, name)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (errors.OperationTimeoutError("late"), TimeoutError),
        (errors.ChannelClosedError("gone"), _errors.Disconnected),
        (errors.ChannelClosedError("gone"), _errors.RemoteError),
        (errors.AccessDeniedError("no"), _errors.RemoteError),
        (errors.RemoteError("no"), _errors.RemoteError),
        (errors.KeychainError("no file"), RuntimeError),
    ],
)
def test_an_error_of_ours_becomes_the_one_that_a_program_expects(
    ours: Exception, theirs: type[Exception]
) -> None:
    error = _errors.p4p_error(ours)
    assert isinstance(error, theirs)
    assert str(error) == str(ours)


def test_an_error_of_the_program_stays_as_it_is() -> None:
    error = KeyError("x")
    assert _errors.p4p_error(error) is error
