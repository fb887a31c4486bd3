"""Restores saved values: while the IOC is initialised (dbStaticLib), as autosave does, or in running records."""

from __future__ import annotations

from typing import Any

from appliance.errors import ApplianceError, OperationError
from appliance.ioc.dbcore import _c
from appliance.ioc.dbcore.channel import DBChannel
from appliance.ioc.dbcore.records import entry
from appliance.ioc.dbcore.words import status_text

__all__ = ["put_saved", "restore"]


def restore(name: str, value: str | tuple[str, ...], *, is_late: bool) -> bool:
    """Put one saved value back; nothing is processed.

    Args:
        name: record and field.
        value: the saved text, or the texts of an array's elements.
        is_late: records are initialised. Links can only be restored before, arrays only after that.

    Returns:
        Whether the value was restored; False if the other pass must do it.

    Raises:
        ApplianceError: no such record or field, or a value that does not fit.

    """
    with entry() as cursor:
        plain = name.removesuffix("$")
        missing = _c.dbFindRecord(cursor, _c.raw(plain))
        if not missing and not cursor.pflddes:
            missing = _c.dbFindField(cursor, b"VAL")
        if missing or not cursor.pflddes:
            raise ApplianceError(f"there is no {name}")
        if _c.dbIsAlias(cursor):
            raise ApplianceError(f"{name} is an alias; write the record's own name into the request file")
        kind = cursor.pflddes.contents.field_type
        if kind == _c.DBF_NOACCESS or isinstance(value, tuple):
            if is_late:
                _late(name, value)
            return is_late
        if _c.DBF_INLINK <= kind <= _c.DBF_FWDLINK and is_late:
            return False
        if kind == _c.DBF_MENU and value.lstrip("-").isdecimal():
            status = _c.dbPutMenuIndex(cursor, int(value))
        else:
            status = _c.dbPutString(cursor, _c.raw(value))
        if status:
            raise ApplianceError(f"{name}: {value[:64]!r}: {status_text(status)}")
        return True


def put_saved(name: str, value: str | tuple[str, ...]) -> None:
    """Put one saved value into a running record, as a client would: the record is processed if its field asks for that.

    Args:
        name: record and field.
        value: the saved text, or the texts of an array's elements.

    Raises:
        ApplianceError: no such record or field, or a value that does not fit.
    """
    with DBChannel(name) as channel:
        channel.put(_fitting(channel, value))


def _late(name: str, value: str | tuple[str, ...]) -> None:
    with DBChannel(name) as channel:
        new = _fitting(channel, value)
        with channel.locked():
            channel.put_locked(new)


def _fitting(channel: DBChannel, value: str | tuple[str, ...]) -> Any:
    """Return a saved value as the field takes it. Numbers stay whole: not all that 64 bits hold is a double."""
    if channel.is_array:
        texts = (value,) if isinstance(value, str) else value
        if len(texts) > channel.elements:
            raise OperationError(f"{channel.name} takes {channel.elements} elements, not {len(texts)}")
        return texts if channel.final_type == _c.DBF_STRING else [_number(text) for text in texts]
    if isinstance(value, tuple):
        value = value[0] if value else ""
    if channel.final_type == _c.DBF_ENUM and value.isdecimal():
        # As text it could be the name of another choice.
        return int(value)
    return value


def _number(text: str) -> float | int:
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            raise OperationError(f"{text[:64]!r} is not a number") from None
