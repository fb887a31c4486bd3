"""CERT:SCHEDULE: shows and sets in which hours a certificate is in use.

Source: SPVA specification 4.7.4 and 10.2; the structures are those of pvxs-cms of 2026, whose ``pvxcert -S`` calls this PV
without the issuer in its name and without an NTURI. What it has not, ``time_zone``, ``local``, ``by`` and ``state``, stands at
the end.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from appliance.authn.ccr import is_empty
from appliance.certmon.wire_arrays import SCHEDULE_ARRAY, read_schedule, read_zone, schedule_array
from appliance.certs.schedule import Schedule, Timetable
from appliance.certs.x509 import shown_id
from appliance.cms.lifecycle import Lifecycle
from appliance.cms.model import Actor, schedule_of, windows_now
from appliance.cms.policy import Names, Policy
from appliance.cms.pvs import CalledPV, StatusCommands, Tasks, asked
from appliance.cms.transaction import CertRecord
from appliance.config.zones import time_zone
from appliance.errors import ConfigurationError, RequestRefused
from appliance.pvdata import STRING, StructType, Value
from appliance.server import Operation

__all__ = ["ANSWER", "SchedulePV"]

_log: Final = logging.getLogger(__name__)
_QUERIES: Final = ("serial", "read_only", "schedule", "time_zone")

ANSWER: Final = StructType(
    [
        ("result", STRING),
        ("schedule", SCHEDULE_ARRAY),
        ("time_zone", STRING),
        ("local", SCHEDULE_ARRAY),
        ("by", STRING),
        ("state", STRING),
    ]
)
"""``schedule`` is in UTC, as it is today; ``local`` is what was set, in ``time_zone``, and empty if that is UTC.

``by`` says whether the ``holder`` or an administrator (``admin``) set it, and ``state`` what the certificate is now.
"""


class SchedulePV(CalledPV):
    """CERT:SCHEDULE, for administrators; the holder of a certificate may read its own."""

    __slots__ = ("_commands", "_lifecycle", "_names", "_policy", "_tasks")

    def __init__(
        self, lifecycle: Lifecycle, names: Names, policy: Policy, commands: StatusCommands, tasks: Tasks
    ) -> None:
        super().__init__(
            ANSWER, "call this PV: RPC with a query of serial, read_only and schedule; use pvxcert -S"
        )
        self._lifecycle = lifecycle
        self._names = names
        self._policy = policy
        self._commands = commands
        self._tasks = tasks

    def rpc(self, operation: Operation, argument: Value | None) -> None:
        """Show the schedule, or set it: what is sent replaces all that there was."""
        query = asked(argument, _QUERIES)
        serial = _number(query, "serial")
        if not serial:
            raise RequestRefused(
                "the request has no serial; call with a query of serial, read_only and schedule"
            )
        read_only = _flag(query, "read_only")
        peer = operation.peer
        allowed = self._policy.administers(peer) or (read_only and self._policy.owns(peer, serial))
        if not allowed:
            why = "only administrators may set a schedule, and only they and its holder may read it"
            self._commands.refused(peer, serial, "SCHEDULE", why)
            raise RequestRefused(why)
        if read_only and not is_empty(query, ("schedule", "time_zone")):
            raise RequestRefused(
                "schedule and time_zone have no effect with read_only; leave out one or the other"
            )
        if read_only:
            self._tasks.start(operation, self._show(operation, serial))
            return
        schedule = _asked(query)
        if self._policy.owns(peer, serial) and not self._is_open(schedule):
            # Only a command on the service's host would help whoever is the only administrator.
            why = (
                "these hours do not include the present time, so your own certificate, by which you ask, could not change them back; "
                "have another administrator set them, or set them in an hour that they include"
            )
            self._commands.refused(peer, serial, "SCHEDULE", why)
            raise RequestRefused(why)
        self._tasks.start(operation, self._set(operation, serial, schedule))

    def _is_open(self, schedule: Schedule) -> bool:
        """Whether a certificate with this schedule is in use now."""
        if not schedule.windows:
            return True
        return Timetable(schedule, time_zone(schedule.zone)).covers(self._lifecycle.clock())

    async def _show(self, operation: Operation, serial: int) -> None:
        record = await self._lifecycle.find(serial)
        if record is None:
            raise RequestRefused("the certificate is not known here")
        operation.reply(self._reply(record))

    async def _set(self, operation: Operation, serial: int, schedule: Schedule) -> None:
        peer = operation.peer
        actor = Actor(peer.method, peer.account, peer.peer)
        record = await self._lifecycle.reschedule(serial, schedule, actor)
        identifier = shown_id(record.issuer, serial)
        windows = ", ".join(map(str, schedule.windows)) or "none: always in use"
        told = {
            "event": "certificate-scheduled", "cert_id": identifier, "state": record.state.value, **peer.facts()
        }  # fmt: skip
        _log.info(
            "%s is %s: schedule set by %s: %s %s",
            identifier, record.state.value, peer.account, windows, schedule.zone, extra=told,
        )  # fmt: skip
        operation.reply(self._reply(record))

    def _reply(self, record: CertRecord) -> Value:
        now = self._lifecycle.clock()
        schedule = schedule_of(record)
        return Value(
            ANSWER,
            {
                "result": "ok",
                "schedule": schedule_array(windows_now(record, now)),
                "time_zone": schedule.zone,
                "local": schedule_array(schedule.windows if schedule.zone else ()),
                "by": schedule.by,
                "state": self._lifecycle.state(record).value,
            },
        )


def _asked(query: Any) -> Schedule:
    try:
        windows, zone = read_schedule(query), read_zone(query)
        time_zone(zone)
    except (ValueError, ConfigurationError) as error:
        raise RequestRefused(f"the schedule was not changed: {error}") from error
    if zone and not windows:
        raise RequestRefused("the schedule was not changed: time_zone has no effect without windows")
    return Schedule(windows, zone, "admin")


def _number(query: Any, name: str) -> int:
    found = 0 if query is None else query.get(name, default=0)
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < 1 << 64:
        raise RequestRefused(f"the field {name} must be a whole number that is not negative")
    return found


def _flag(query: Any, name: str) -> bool:
    found = False if query is None else query.get(name, default=False)
    if not isinstance(found, bool):
        raise RequestRefused(f"the field {name} must be true or false")
    return found
