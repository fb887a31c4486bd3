"""``pvxcert -S``: shows and sets the schedule of a certificate."""

from __future__ import annotations

from appliance.cli.common import Output, complain, one_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from appliance.certs.keychain import Keychain
    from appliance.certs.schedule import Window
    from appliance.client.context import Context
    from appliance.config.pva import ClientConfig

__all__ = ["Change", "call_schedule", "read_change", "show_from_status"]

_SET_BY = {"admin": "an administrator", "holder": "its holder"}


class Change:
    """What ``-S`` asks for.

    Args:
        windows: The new schedule; None: only show what is there.
        zone: Time zone of the windows; empty for UTC.
    """

    __slots__ = ("windows", "zone")

    def __init__(self, windows: tuple[Window, ...] | None, zone: str) -> None:
        self.windows = windows
        self.zone = zone


def read_change(words: Sequence[str], zone: str) -> Change:
    """Read the values of ``-S``: ``show``, ``none``, or windows ``DAY,HH:MM,HH:MM``.

    Raises:
        ConfigurationError: A value has another form, or the values contradict each other.
    """
    from appliance.certs.schedule import MOST_WINDOWS, parse_windows
    from appliance.config.zones import time_zone
    from appliance.errors import ConfigurationError

    alone = [word for word in words if word.lower() in ("show", "none")]
    if alone and (len(words) > 1 or zone):
        raise ConfigurationError(f"-S {alone[0]} stands alone: it takes no windows and no --time-zone")
    if alone:
        return Change(None if alone[0].lower() == "show" else (), "")
    try:
        windows = tuple(sorted({window for word in words for window in parse_windows(word)}))
    except ValueError as error:
        raise ConfigurationError(f"-S: {error}, or the word show or none") from None
    if len(windows) > MOST_WINDOWS:
        raise ConfigurationError(
            f"-S: a schedule has at most {MOST_WINDOWS} windows, and these are {len(windows)}"
        )
    if zone:
        time_zone(zone)
    return Change(windows, zone)


async def call_schedule(
    context: Context,
    name: str,
    identifier: str,
    serial: int,
    change: Change,
    *,
    as_json: bool,
    timeout: float,
) -> None:
    """Do what is asked for with one certificate, and print its schedule as it is then.

    Raises:
        ApplianceError: The service refuses, or does not answer.
    """
    from appliance.errors import RemoteError

    if change.zone:
        known = await context.rpc(name, _query(serial, None, ""), timeout=timeout)
        if known is None or "time_zone" not in known:
            raise RemoteError(
                f"{name}: this certificate service knows no time zones and would take the hours for UTC, so nothing was "
                "changed; give the hours in UTC, without --time-zone"
            )
    answer = await context.rpc(name, _query(serial, change.windows, change.zone), timeout=timeout)
    if answer is None:
        raise RemoteError(f"{name}: the answer is empty")
    _print(answer, name, identifier, as_json=as_json)


async def show_from_status(
    config: ClientConfig,
    keychain: Keychain,
    change: Change,
    error: Exception,
    *,
    as_json: bool,
    timeout: float,
) -> bool:
    """Whether the schedule of a keychain's own certificate could be shown from its status, which everybody may read.

    The service lets nobody in with a certificate that is off its hours, so CERT:SCHEDULE tells its holder nothing then.

    Args:
        config: The client's settings, without a keychain.
        keychain: The keychain.
        change: What was asked for: only what is there can be shown.
        error: Why CERT:SCHEDULE showed nothing.
        as_json: Print it as JSON.
        timeout: Seconds to wait.
    """
    from datetime import UTC, datetime

    from appliance.authn.report import schedule_lines, window_facts
    from appliance.authn.status import fetch_status, public_context
    from appliance.errors import ApplianceError, OperationTimeoutError

    if change.windows is not None or not keychain.status_pv or not isinstance(error, OperationTimeoutError):
        return False
    try:
        async with public_context(config, keychain.anchors) as context:
            found = await fetch_status(
                context,
                keychain.status_pv,
                issuer=keychain.issuer,
                serial=keychain.serial,
                now=datetime.now(UTC),
                timeout=timeout,
                certificate=keychain.certificate,
            )
    except ApplianceError:
        return False
    windows, zone, state = found.report.schedule, found.report.time_zone, found.claimed.value
    complain("This is what the certificate's status says; its hours are not signed")
    if as_json:
        shown = {"schedule": window_facts(windows), "time_zone": zone, "local": [], "by": "", "state": state}
        Output(json=True).object(cert_id=keychain.cert_id, **shown)
        return True
    lines = ["Schedule:", "=" * 44, *(schedule_lines(windows, (), "") or ["  (no schedule windows)"])]
    if zone:
        lines.append(f"Time Zone     : {zone}")
    print("\n".join(one_line(line) for line in [*lines, f"Status        : {state}", "-" * 44]))
    return True


def _query(serial: int, windows: tuple[Window, ...] | None, zone: str) -> Any:
    from appliance.certmon.wire_arrays import SCHEDULE_ARRAY, schedule_array
    from appliance.pvdata.types import BOOL, STRING, UINT64, StructType
    from appliance.pvdata.value import Value

    fields = [("serial", UINT64), ("read_only", BOOL), ("schedule", SCHEDULE_ARRAY)]
    if zone:
        fields.append(("time_zone", STRING))
    query: dict[str, Any] = {"serial": serial, "read_only": windows is None}
    if windows:
        query["schedule"] = schedule_array(windows)
    if zone:
        query["time_zone"] = zone
    return Value(StructType([("query", StructType(fields))]), {"query": query})


def _print(answer: Any, name: str, identifier: str, *, as_json: bool) -> None:
    from appliance.authn.report import schedule_lines, window_facts
    from appliance.certmon.wire_arrays import read_schedule, read_zone
    from appliance.errors import RemoteError

    try:
        in_utc, local, zone = read_schedule(answer), read_schedule(answer, "local"), read_zone(answer)
    except ValueError as error:
        raise RemoteError(f"{name}: the answer cannot be read: {error}") from error
    by, state = (found if isinstance(found := answer.get(field), str) else "" for field in ("by", "state"))
    if as_json:
        Output(json=True).object(
            cert_id=identifier,
            schedule=window_facts(in_utc),
            time_zone=zone,
            local=window_facts(local),
            by=by,
            state=state,
        )
        return
    lines = ["Schedule:", "=" * 44, *(schedule_lines(in_utc, local, zone) or ["  (no schedule windows)"])]
    if in_utc and by:
        lines.append(f"Set By        : {_SET_BY.get(by, by)}")
    if state:
        lines.append(f"Status        : {state}")
    print("\n".join(one_line(line) for line in [*lines, "-" * 44]), flush=True)
