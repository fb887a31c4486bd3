"""The public names fit together."""

from __future__ import annotations

import inspect

import pytest

import appliance
from appliance import client, server


@pytest.mark.parametrize(
    ("front", "plain"), [(appliance.Context, client.Context), (appliance.Server, server.Server)]
)
def test_the_client_and_the_server_of_the_front_take_what_the_plain_ones_take(
    front: type, plain: type
) -> None:
    """A program changes from one to the other without another change, and editors know every argument."""
    assert inspect.signature(front) == inspect.signature(plain)
