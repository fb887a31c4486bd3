"""The short form of a value, for people: one line with name, local time, value or choice, units and alarm.

It shows normative types: a structure without a plain field ``value`` has no short form.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["short"]

_SEVERITIES = ("", "MINOR", "MAJOR", "INVALID", "UNDEFINED")
_DIGITS = 15
"""More digits say nothing about a double."""


def short(name: str, plain: Any, limit: int) -> str | None:
    """Return the line, or None for a structure without a short form.

    Args:
        name: The PV.
        plain: The value as plain mappings, lists and scalars, with the fields that were asked for.
        limit: Greatest number of elements of an array; 0 means all.
    """
    if not isinstance(plain, dict) or "value" not in plain:
        return None
    display = _part(plain, "display")
    text = _content(plain["value"], display, limit)
    if text is None:
        return None
    words = [name.ljust(30), _when(_part(plain, "timeStamp")), text, _text(display.get("units", ""))]
    return "  ".join([word for word in (*words, _alarm(_part(plain, "alarm"))) if word]).rstrip() + "\n"


def _part(plain: dict[str, Any], name: str) -> dict[str, Any]:
    part = plain.get(name)
    return part if isinstance(part, dict) else {}


def _content(value: Any, display: dict[str, Any], limit: int) -> str | None:
    if isinstance(value, dict):
        choices, index = value.get("choices"), value.get("index")
        if isinstance(choices, list) and isinstance(index, int):
            known = 0 <= index < len(choices)
            return _text(choices[index]) if known else f"{index} (not one of {len(choices)} choices)"
        return None
    if isinstance(value, list):
        shown = value[:limit] if limit else value
        items = [_scalar(item, display) for item in shown]
        if None in items:
            return None
        more = f", ... {len(value)} in all" if len(shown) < len(value) else ""
        return f"[{', '.join([item for item in items if item is not None])}{more}]"
    return _scalar(value, display)


def _scalar(value: Any, display: dict[str, Any]) -> str | None:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        precision = display.get("precision")
        if isinstance(precision, int) and 0 < precision <= _DIGITS and abs(value) < 1e15:
            return f"{value:.{precision}f}"
        return f"{value:.10g}"
    return str(value) if isinstance(value, int) else None


def _when(stamp: dict[str, Any]) -> str:
    seconds, nanoseconds = stamp.get("secondsPastEpoch"), stamp.get("nanoseconds")
    if not isinstance(seconds, int):
        return ""
    if not seconds:
        return "(no time)".ljust(23)
    try:
        local = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, OSError, ValueError):
        return f"(time {seconds})"
    millis = nanoseconds // 1_000_000 if isinstance(nanoseconds, int) and 0 <= nanoseconds < 10**9 else 0
    return f"{local}.{millis:03d}"


def _alarm(alarm: dict[str, Any]) -> str:
    severity = alarm.get("severity")
    if not isinstance(severity, int) or not severity:
        return ""
    word = _SEVERITIES[severity] if 0 < severity < len(_SEVERITIES) else f"severity {severity}"
    message = _text(alarm.get("message", ""))
    return f"{word} {message}".rstrip()


def _text(text: Any) -> str:
    """Return letters of all languages unchanged, and characters that control a terminal in visible form."""
    if not isinstance(text, str):
        return str(text)
    if text.isprintable():
        return text
    return "".join([char if char.isprintable() else repr(char)[1:-1] for char in text])
