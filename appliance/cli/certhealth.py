"""``pvxcert -H`` and ``-M``: health and metrics of a certificate service.

The text is that of the C++ ``pvxcert`` of 2026, which other programs read; what only this service says follows it.
"""

from __future__ import annotations

from appliance.cli.common import FAILED, OK, Output, complain, one_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from typing import Any

    from appliance.client.context import Context

__all__ = ["show_health", "show_metrics"]

_WIDE = 32
_MOST_MEMBERS = 64
"""Nodes that are shown. A service has a few."""
_MORE = (
    ("ccrs_refused", "Requests Refused"),
    ("ccrs_rate_limited", "Requests Rate Limited"),
    ("ccrs_in_flight", "Requests In Flight"),
    ("renewals", "Renewals"),
    ("certs_pending_approval", "Wait For Approval"),
    ("certs_pending_renewal", "Wait For Renewal"),
    ("certs_scheduled_offline", "Offline By Schedule"),
    ("audit_seq", "Audit Records"),
    ("audit_verified_seq", "Audit Records Checked"),
    ("certs_checked", "Certificates Checked"),
    ("status_signed", "Status Answers Signed"),
    ("db_commits", "Database Commits"),
    ("certs_watched", "Certificates Watched"),
    ("feed_lag_ms", "Database Seen Before (ms)"),
    ("db_reconnects", "Database Found Again"),
    ("cluster_members", "Cluster Members"),
    ("certs_former", "Of Former Authorities"),
    ("certs_ending", "Ending In 30 Days"),
)
"""What only this service publishes; a counter that a service does not have is left out."""


async def show_health(
    context: AbstractAsyncContextManager[Context], name: str, *, as_json: bool, timeout: float
) -> int:
    """Print the health of a service; return 0 if it is good and 1 if it is not.

    Raises:
        ApplianceError: No service answers.
    """
    value = await _get(context, name, timeout)
    ok = _number(value, "value.index") == 1
    message = _text(value, "alarm.message")
    if as_json:
        Output(json=True).object(
            name=name,
            ok=ok,
            message=message,
            **{field: value.get(field) is True for field in ("db_ok", "ca_valid", "cluster_mode")},
            **{field: _number(value, field) for field in ("uptime_secs", "cert_count", "cluster_members")},
            last_check=_text(value, "last_check"),
            members=_members(value),
        )
    else:
        print("\n".join(_health_lines(value, ok=ok)), flush=True)
    if not ok:
        complain(f"Warning: {name}: {one_line(message) or 'the service says that it is not OK'}")
    return OK if ok else FAILED


def _health_lines(value: Any, *, ok: bool) -> list[str]:
    rows = [
        ("Status", "OK" if ok else "DEGRADED"),
        ("Database Integrity", "OK" if value.get("db_ok") is True else "FAIL"),
        ("CA Certificate", "Valid" if value.get("ca_valid") is True else "Expired / Missing"),
        ("Uptime", _duration(_number(value, "uptime_secs"))),
        ("Certificate Count", str(_number(value, "cert_count"))),
    ]
    if value.get("cluster_mode") is not None:
        rows.append(("Cluster Mode", "ENABLED" if value["cluster_mode"] is True else "DISABLED"))
    rows += [
        ("Cluster Members", str(_number(value, "cluster_members"))),
        ("Last Check", _date(_text(value, "last_check"))),
    ]
    shown = [_line(label, text) for label, text in rows]
    members = _members(value)
    if members:
        shown.append("  Members")
        shown += [
            _line(one_line(str(member["name"] or member["node_id"])), _of_member(member), 4)
            for member in members
        ]
    return ["", "PVACMS Health", "=" * 44, *shown, "-" * 44]


def _members(value: Any) -> list[dict[str, Any]]:
    """Return the nodes that share the database, of a service that names them."""
    found = value.get("members")
    members = []
    for each in found if isinstance(found, list) else ():
        if each is None:
            continue
        release = ".".join(str(_number(each, f"version_{part}")) for part in ("major", "minor", "patch"))
        members.append(
            {
                "name": _text(each, "name"),
                "node_id": _text(each, "node_id"),
                "version": release,
                "connected": each.get("connected") is True,
                "last_seen": _text(each, "last_seen"),
            }
        )
    return members[:_MOST_MEMBERS]


def _of_member(member: dict[str, Any]) -> str:
    state = "connected" if member["connected"] else f"not connected since {_date(member['last_seen'])}"
    return f"{member['node_id'] or 'starting'}, {member['version']}, {state}"


async def show_metrics(
    context: AbstractAsyncContextManager[Context], name: str, *, as_json: bool, timeout: float
) -> int:
    """Print the counters of a service.

    Raises:
        ApplianceError: No service answers.
    """
    value = await _get(context, name, timeout)
    counted = ("certs_created", "certs_revoked", "uptime_secs", "db_size_bytes")
    more = {field: _number(value, field) for field, _ in _MORE if value.get(field) is not None}
    if as_json:
        facts = {field: _number(value, field) for field in counted}
        Output(json=True).object(
            name=name,
            certs_active=_number(value, "value"),
            avg_ccr_time_ms=_float(value, "avg_ccr_time_ms"),
            **facts,
            **more,
        )
        return OK
    lines = [
        "",
        "PVACMS Metrics",
        "=" * 44,
        "  Counters (since startup)",
        _line("Certificates Created", str(_number(value, "certs_created")), 4),
        _line("Certificates Revoked", str(_number(value, "certs_revoked")), 4),
        _line("Uptime", _duration(_number(value, "uptime_secs")), 4),
        "  Gauges (current state)",
        _line("Certificates Active", str(_number(value, "value")), 4),
        _line("Avg CCR Time", f"{_float(value, 'avg_ccr_time_ms'):.3f} ms", 4),
        _line("Database Size", _size(_number(value, "db_size_bytes")), 4),
    ]
    if more:
        lines.append("  Of This Service")
        lines += [_line(label, str(more[field]), 4) for field, label in _MORE if field in more]
    print("\n".join([*lines, "-" * 44]), flush=True)
    return OK


async def _get(context: AbstractAsyncContextManager[Context], name: str, timeout: float) -> Any:
    from appliance.errors import OperationTimeoutError

    async with context as asking:
        try:
            return await asking.get(name, timeout=timeout)
        except OperationTimeoutError as error:
            raise OperationTimeoutError(
                f"{error}. No certificate service could be asked, so nothing is known of it"
            ) from error


def _line(label: str, text: str, indent: int = 2) -> str:
    return f"{' ' * indent + label:<{_WIDE}} : {one_line(text)}"


def _number(value: Any, field: str) -> int:
    found = value.get(field)
    return found if isinstance(found, int) and not isinstance(found, bool) else 0


def _float(value: Any, field: str) -> float:
    found = value.get(field)
    # A number that JSON does not have is shown as none.
    return found if isinstance(found, float) and abs(found) < 1e15 else 0.0


def _text(value: Any, field: str) -> str:
    found = value.get(field)
    return found[:512] if isinstance(found, str) else ""


def _duration(seconds: int) -> str:
    days, rest = divmod(seconds, 86_400)
    hours, rest = divmod(rest, 3600)
    minutes, left = divmod(rest, 60)
    return f"{f'{days}d ' if days else ''}{hours:02d}:{minutes:02d}:{left:02d} ({seconds}s)"


def _size(octets: int) -> str:
    number = float(octets)
    for unit, digits in (("B", 0), ("KiB", 1), ("MiB", 1), ("GiB", 2)):
        if number < 1024 or unit == "GiB":
            return f"{number:.{digits}f} {unit} ({octets})"
        number /= 1024
    raise AssertionError


def _date(text: str) -> str:
    from datetime import UTC, datetime

    from appliance.certs.status import format_date

    if not text:
        return "(never)"
    try:
        return format_date(datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC))
    except ValueError:
        return text
