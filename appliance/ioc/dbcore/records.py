"""The contents of the database: records, aliases, record types, info items."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

from appliance.errors import ApplianceError
from appliance.ioc.dbcore import _c


class RecordInfo(NamedTuple):
    """One name under which a record can be reached."""

    #: the record's name, or the alias
    name: str
    #: ``ai``, ``waveform`` ...
    record_type: str
    is_alias: bool
    #: address of the record (``struct dbCommon *``)
    address: int


@contextmanager
def entry() -> Iterator[_c.dbEntry]:
    """Give a cursor over the static database (dbInitEntry, dbFinishEntry).

    Raises:
        ApplianceError: no database definition is loaded.

    """
    base = _c.pdbbase()
    if not base.value:
        raise ApplianceError("no database definition is loaded: boot the IOC first")
    cursor = _c.dbEntry()
    _c.dbInitEntry(base, cursor)
    try:
        yield cursor
    finally:
        _c.dbFinishEntry(cursor)


def record_types() -> list[str]:
    """Return the names of all record types that are defined."""
    names: list[str] = []
    with entry() as cursor:
        status = _c.dbFirstRecordType(cursor)
        while not status:
            names.append(_c.text(cursor.precordType.contents.name))
            status = _c.dbNextRecordType(cursor)
    return names


def menu_choices(menu: str) -> list[str]:
    """Return the choices of a menu; none if there is no such menu."""
    base = _c.pdbbase()
    found = _c.dbFindMenu(base, menu.encode()) if base.value else None
    if not found:
        return []
    return [_c.text(found.contents.papChoiceValue[number]) for number in range(found.contents.nChoice)]


def _steps(cursor: _c.dbEntry) -> Iterator[bytes]:
    """Move the cursor from one record or alias to the next; yield the name of each one's record type."""
    type_status = _c.dbFirstRecordType(cursor)
    while not type_status:
        record_type = cursor.precordType.contents.name
        status = _c.dbFirstRecord(cursor)
        while not status:
            yield record_type
            status = _c.dbNextRecord(cursor)
        type_status = _c.dbNextRecordType(cursor)


def _each(cursor: _c.dbEntry) -> Iterator[RecordInfo]:
    for record_type in _steps(cursor):
        node = cursor.precnode.contents
        alias = bool(_c.dbIsAlias(cursor))
        address = node.aliasedRecnode.contents.precord if alias else node.precord
        yield RecordInfo(_c.text(node.recordname), _c.text(record_type), alias, address)


def record_count() -> int:
    """Return the number of records and aliases."""
    count = 0
    with entry() as cursor:
        status = _c.dbFirstRecordType(cursor)
        while not status:
            count += _c.dbGetNRecords(cursor)
            status = _c.dbNextRecordType(cursor)
    return count


def record_names() -> list[str]:
    """Return the names of all records and aliases."""
    with entry() as cursor:
        return [_c.text(cursor.precnode.contents.recordname) for _ in _steps(cursor)]


def records() -> list[RecordInfo]:
    """Return all records and aliases, by record type; within one, in the order in which they were loaded."""
    with entry() as cursor:
        return list(_each(cursor))


def info_items(name: str) -> list[tuple[str, str]]:
    """Return ``(record name, text)`` of every ``info()`` item of that name, aliases left out.

    The order is that in which the records were loaded, whatever their types: groups depend on it.
    """
    wanted = _c.raw(name)
    found: list[tuple[int, str, str]] = []
    with entry() as cursor:
        for _ in _steps(cursor):
            # This first: of a hundred thousand records few have it.
            item = _c.dbGetInfo(cursor, wanted)
            if item is not None and not _c.dbIsAlias(cursor):
                node = cursor.precnode.contents
                found.append((node.order, _c.text(node.recordname), _c.text(item)))
    # By the order alone, which is each record's own.
    return [(record_name, item) for _, record_name, item in sorted(found)]


def database_links() -> Iterator[tuple[str, str, str]]:
    """Yield record, field and text of the links that name another PV, as they stand in the database.

    Constants, hardware addresses and JSON links name none.
    """
    for record, field, _, text in link_texts():
        if text[0] not in "@#{[" and not _is_number(text):
            yield record, field, text


def link_texts() -> Iterator[tuple[str, str, int, str]]:
    """Yield record, field, its DBF code and text of all links that are not empty. The text is what the database says until iocInit, and EPICS' form of it afterwards."""
    fields: dict[str, list[tuple[str, int]]] = {}
    with entry() as cursor, entry() as other:
        for record in _each(cursor):
            if record.is_alias:
                continue
            kind = record.record_type
            if kind not in fields:
                fields[kind] = [
                    (field, place.field_type)
                    for field, place in fields_of(kind).items()
                    if _c.DBF_INLINK <= place.field_type <= _c.DBF_FWDLINK
                ]
            if _c.dbFindRecord(other, _c.raw(record.name)):
                continue
            for field, field_type in fields[kind]:
                if _c.dbFindField(other, field.encode()):
                    continue
                text = _c.text(_c.dbGetString(other)).strip()
                if text:
                    yield record.name, field, field_type, text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.lower().startswith("0x")
    return True


def info_of(address: int, name: str) -> str | None:
    """Return one ``info()`` item of the record at an address (dbInitEntryFromRecord)."""
    cursor = _c.dbEntry()
    _c.dbInitEntryFromRecord(address, cursor)
    try:
        item = _c.dbGetInfo(cursor, _c.raw(name))
        return None if item is None else _c.text(item)
    finally:
        _c.dbFinishEntry(cursor)


class FieldPlace(NamedTuple):
    """Where a field lies inside its record."""

    #: bytes from the record's address
    offset: int
    #: DBF code
    field_type: int
    #: bytes of one element
    size: int
    #: a change of it posts DBE_PROPERTY (``prop(YES)``)
    is_property: bool


def _place(description: _c.dbFldDes) -> FieldPlace:
    return FieldPlace(description.offset, description.field_type, description.size, bool(description.prop))


@cache
def field_place(record_type: str, field: str) -> FieldPlace:
    """Return where a field lies, from the database definition (dbFldDes).

    Because the definition is asked, this is right for every version of Base.

    Raises:
        ApplianceError: the record type has no such field, or no record of that type exists.

    """
    with entry() as cursor:
        if _c.dbFindRecordType(cursor, _c.raw(record_type)) or _c.dbFirstRecord(cursor):
            raise ApplianceError(f"there is no record of type {record_type}")
        if _c.dbFindField(cursor, _c.raw(field)):
            raise ApplianceError(f"record type {record_type} has no field {field}")
        return _place(cursor.pflddes.contents)


@cache
def fields_of(record_type: str) -> dict[str, FieldPlace]:
    """Return where all fields of a record type lie.

    Raises:
        ApplianceError: no record of that type exists.

    """
    with entry() as cursor:
        if _c.dbFindRecordType(cursor, _c.raw(record_type)) or _c.dbFirstRecord(cursor):
            raise ApplianceError(f"there is no record of type {record_type}")
        found: dict[str, FieldPlace] = {}
        status = _c.dbFirstField(cursor, 0)
        while not status:
            description = cursor.pflddes.contents
            found[_c.text(description.name)] = _place(description)
            status = _c.dbNextField(cursor, 0)
        return found


@cache
def common_field(field: str) -> FieldPlace:
    """Return the place of a field that all record types share (dbCommon)."""
    with entry() as cursor:
        status = _c.dbFirstRecordType(cursor)
        while not status:
            if not _c.dbFirstRecord(cursor):
                return field_place(_c.text(cursor.precordType.contents.name), field)
            status = _c.dbNextRecordType(cursor)
    raise ApplianceError("no records are loaded")


def common_place(field: str) -> int:
    """Return the offset in bytes of a field that all record types share (dbCommon)."""
    return common_field(field).offset


def text_at(address: int, place: FieldPlace) -> str:
    """Read a text field (DBF_STRING) out of the memory of the record at an address.

    Such a field may have no terminating nul: octets that EPICS writes can fill it completely. So its size bounds the
    reading; the reader may not have the right to see the field behind it.
    """
    return _c.c_text(ctypes.string_at(address + place.offset, place.size))


def record_type_of(address: int) -> str:
    """Return the record type of the record at an address."""
    cursor = _c.dbEntry()
    _c.dbInitEntryFromRecord(address, cursor)
    try:
        return _c.text(cursor.precordType.contents.name)
    finally:
        _c.dbFinishEntry(cursor)


def record_name_of(address: int) -> str:
    """Return the name of the record at an address."""
    return text_at(address, common_field("NAME"))


def record_group(address: int) -> str:
    """Return the access security group of the record at an address, field ASG (empty means DEFAULT)."""
    return text_at(address, common_field("ASG"))
