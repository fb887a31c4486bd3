"""CERT:STATUS values for tests, made by the writer that the certificate service uses."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from appliance.certmon.status_pv import STATUS_TYPE, status_template, write_status
from appliance.certs.status import CertState
from appliance.pvdata.value import Value


def encode_status(
    state: CertState,
    serial: int,
    ocsp_response: bytes = b"",
    *,
    this_update: datetime,
    next_update: datetime,
    revocation_date: datetime | None = None,
    **more: Any,
) -> Value:
    """Make a CERT:STATUS value; ``more`` are further fields (``renew_by``, ``renewal_due`` ...)."""
    value = status_template()
    value["ocsp_response"] = list(ocsp_response)
    write_status(
        value.store,
        state,
        serial,
        value.store[STATUS_TYPE.offsets["ocsp_response"]],
        this_update=this_update,
        next_update=next_update,
        revocation_date=revocation_date,
    )
    for path, x in more.items():
        value[path] = x
    value.mark()
    return value
