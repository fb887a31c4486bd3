"""One open field of a record: the type that clients see, the places in a store, and how it is read.

Source: behaviour of pvxs ``ioc/singlesource.cpp``; pvxs documentation ``ioc.rst`` and ``ntscalar.rst``.
"""

from __future__ import annotations

from typing import Any

from appliance.ioc.dbcore import DBChannel, NumberReader, Reading, can_read_number
from appliance.ioc.mapping import NTMapping, nt_mapping, tag_mask
from appliance.pvdata.store import new_store

__all__ = ["Record"]


class Record:
    """One field of one record, from its opening to :meth:`close`.

    Args:
        name: record or alias, optionally with a field and filters.

    Raises:
        OperationError: no such record or field, or a filter that EPICS does not understand.

    """

    __slots__ = ("_template", "channel", "mapping", "reader", "static_bits", "tag_bits")

    def __init__(self, name: str) -> None:
        self.channel = channel = DBChannel(name)
        try:
            self.mapping: NTMapping = nt_mapping(channel)
            self.tag_bits = tag_mask(channel)
            """The mask of the nanosecond bits that hold the user tag; 0 for none."""
            self._template = new_store(self.mapping.type)
            self.static_bits = self.mapping.initialize(self._template, 0, channel)
            """The bits of the fields that never change."""
            self.reader = NumberReader(channel) if can_read_number(channel) else None
            """Reads everything in one call; None if the field is not a plain number."""
        except BaseException:
            channel.close()
            raise

    def close(self) -> None:
        """Close the database's channel; cancel its events before."""
        self.channel.close()

    def empty_store(self) -> list[Any]:
        """Make a store that holds only the parts that never change."""
        return self._template.copy()

    def read(self) -> tuple[list[Any], int, Reading]:
        """Read everything.

        Returns:
            A new store, the bits of the fields that are set in it, and the reading that it was made from.

        Raises:
            OperationError: EPICS cannot read the field.

        """
        channel = self.channel
        if self.reader is not None:
            reading, properties = self.reader.read_all()
        elif channel.is_array or channel.elements > 1:
            # Two calls, so that scan threads do not wait while an array is copied twice.
            reading = channel.get()
            properties = channel.properties()
        else:
            with channel.locked():
                reading = channel.get_locked()
                properties = channel.properties_locked()
        mapping = self.mapping
        store = self._template.copy()
        bits = self.static_bits | mapping.set_properties(store, 0, properties)
        bits |= mapping.set_alarm(store, 0, reading)
        bits |= mapping.set_time(store, 0, reading)
        bits |= mapping.set_value(store, 0, reading.value)
        return store, bits, reading

    def __repr__(self) -> str:
        return f"<Record {self.channel.name}>"
