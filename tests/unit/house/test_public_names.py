"""The public names fit together."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import appliance
from appliance import api, client, server


@pytest.mark.parametrize(
    ("front", "plain", "expert"),
    [
        (appliance.Context, client.Context, api._ForContext),
        (appliance.Server, server.Server, api._ForServer),
    ],
)
def test_the_client_and_the_server_of_the_front_take_what_the_plain_ones_take(
    front: type, plain: type, expert: Any
) -> None:
    """A program changes from one to the other without another change, and editors know every argument."""
    shown = dict(inspect.signature(front).parameters)
    assert shown.pop("expert").annotation == f"Unpack[{expert.__name__}]"
    taken = {name: str(parameter.annotation) for name, parameter in shown.items()}
    taken |= {name: kind.__forward_arg__ for name, kind in expert.__annotations__.items()}
    assert taken == {
        name: str(parameter.annotation) for name, parameter in inspect.signature(plain).parameters.items()
    }


@pytest.mark.parametrize("front", [appliance.Context, appliance.Server])
def test_help_begins_with_what_a_newcomer_needs(front: type) -> None:
    assert set(inspect.signature(front).parameters) <= {"config", "policy", "require_tls", "expert"}
    with pytest.raises(TypeError, match="requires_tls"):
        front(requires_tls=True)
