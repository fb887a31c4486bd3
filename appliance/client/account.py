"""The identity that this process claims without proof: method ``ca`` (section 6.1)."""

from __future__ import annotations

import os
import socket

from appliance.pvdata.types import STRING, StructType
from appliance.pvdata.value import Value

__all__ = ["claimed_identity"]

_CA = StructType((("user", STRING), ("host", STRING)))


def claimed_identity() -> Value:
    """Return the payload of method ``ca``: the account that runs this process, and this host's name."""
    import pwd

    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    return Value(_CA, {"user": user, "host": socket.gethostname()})
