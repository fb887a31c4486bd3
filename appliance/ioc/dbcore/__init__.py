"""EPICS Base's record database, used through ctypes; only this package uses ctypes and epicscorelibs.

===================  ========================================================================================
:mod:`.boot`          definition, records, iocInit, shutdown
:mod:`.records`       the loaded records, aliases and info items
:mod:`.channel`       a field: get, put, properties, locks
:mod:`.reading`       readings: value with alarm and time, properties
:mod:`.put_value`     a value in the memory that a put reads
:mod:`.dbr`           options of dbChannelGet and the layout of what it writes
:mod:`.many`          a lock of several records, reading many
:mod:`.array_read`    arrays of numbers, read into the memory of the message that they will be sent in
:mod:`.blocking_put`  puts that wait until processing ends
:mod:`.number_read`   value, alarm, time and properties of a number in one call
:mod:`.number_view`   a number or short text with its alarm and time in the record's own memory, for updates
:mod:`.number_rows`   the same for hundreds of records, by numpy
:mod:`.events`        database events in batches
:mod:`.wakers`        how an event wakes the event loop itself
:mod:`.output`        what shell commands print
:mod:`.errlog`        what EPICS reports while it serves
:mod:`.restore`       saved values, put back before and after records are initialised
:mod:`.traps`         puts over Channel Access that must be logged
:mod:`.words`         words for EPICS' numbers, file and line of its complaints
:mod:`.callbacks`     Python that EPICS calls: subroutines, device support, shell commands, hooks
:mod:`.link_support`  a link type in Python
===================  ========================================================================================

How QSRV's semantics map onto it
--------------------------------

*Type.* ``final_type`` and ``elements`` choose NTScalar or NTScalarArray of that type, NTEnum for ENUM;
``is_string`` makes it a string. ``form`` is the index of ``display.form``, for the value field only.

*Get.* :meth:`DBChannel.get` for value, ``alarm`` and ``timeStamp``; :meth:`DBChannel.properties` for
``display``, ``control``, ``valueAlarm`` and ``value.choices``. ``alarm.status`` of PVAccess is a class of
``Reading.status``; ``alarm.message`` is ``Reading.message`` or else the condition's name. ``Q:time:tag`` takes its
bits from ``nanoseconds``.

*Monitor.* QSRV marks by the event's mask: VALUE and ARCHIVE mark value and time stamp, ALARM marks ``alarm`` and
value too, PROPERTY the properties. One subscription per kind, with its own key, tells them apart; one with
``DBE_VALUE | DBE_ALARM`` is cheaper, and comparing the alarm with that of the last reading says the same, because
records post ALARM exactly when it changed. Subscribe first, read then. Read a batch with :func:`get_many`.

*Put.* :meth:`DBChannel.put` with ``process``; :func:`put_notify` for ``block`` (QSRV ignores ``process=true``
there). ``watch`` for the put log.

*Groups.* Atomic: :class:`ManyLock` over all channels, then ``get_locked``, ``put_locked`` and ``process_locked``.
Not atomic: member by member. Link fields cannot be part of an atomic put.

*Access security.* ``access_group`` and ``as_level`` of a channel. A change of ASG posts DBE_VALUE on the record's
field ASG: subscribe to ``<record>.ASG`` for the records that have clients. EPICS' own hook for this would run
Python with the record locked for every such put.
"""

from __future__ import annotations

from appliance.ioc.dbcore.array_read import (
    ROOM_BEFORE,
    ArrayReader,
    ArrayReading,
    can_read_array,
    forget_locks,
    read_arrays,
)
from appliance.ioc.dbcore.blocking_put import BlockingPut, put_notify
from appliance.ioc.dbcore.boot import (
    IocState,
    boot,
    build_isolated,
    captured_errors,
    environment_value,
    expand_environment,
    flush_output,
    init_access_security,
    ioc_init,
    ioc_state,
    keep_errors_in_place,
    load_definition,
    load_definition_text,
    load_records,
    load_records_text,
    load_template,
    macro_text,
    output_since,
    output_so_far,
    register_support,
    set_access_file,
    shell_command,
    shutdown,
)
from appliance.ioc.dbcore.callbacks import (
    EXIT_RECORDS,
    InitHook,
    RecordView,
    on_init_hook,
    register_command,
    register_device,
    register_exit,
    register_function,
    skip_registrar,
)
from appliance.ioc.dbcore.casr import server_report
from appliance.ioc.dbcore.channel import DBChannel, PutWatch, exists
from appliance.ioc.dbcore.errlog import give_errors_back, set_log_prefix, take_errors, want_errors
from appliance.ioc.dbcore.events import (
    DBE_ALARM,
    DBE_ARCHIVE,
    DBE_PROPERTY,
    DBE_VALUE,
    EventHub,
    EventSubscription,
)
from appliance.ioc.dbcore.many import ManyLock, get_many
from appliance.ioc.dbcore.number_read import NumberReader, RawProperties, can_read_number
from appliance.ioc.dbcore.number_view import (
    NumberView,
    RawNumber,
    can_view_number,
    can_view_text,
    reading_of,
    view_numbers,
)
from appliance.ioc.dbcore.output import (
    serves_channel_access,
    shell_capture,
    shell_commands,
    shell_line,
    shell_print,
)
from appliance.ioc.dbcore.reading import ALARM_CONDITIONS, AlarmLimits, Properties, Range, Reading
from appliance.ioc.dbcore.records import (
    RecordInfo,
    database_links,
    info_items,
    link_texts,
    record_count,
    record_group,
    record_names,
    record_types,
    records,
)
from appliance.ioc.dbcore.restore import put_saved, restore
from appliance.ioc.dbcore.template import most_template_names, set_most_template_names
from appliance.ioc.dbcore.through import printed_through
from appliance.ioc.dbcore.traps import TrappedPut, on_trapped_put

__all__ = [
    "ALARM_CONDITIONS",
    "DBE_ALARM",
    "DBE_ARCHIVE",
    "DBE_PROPERTY",
    "DBE_VALUE",
    "EXIT_RECORDS",
    "ROOM_BEFORE",
    "AlarmLimits",
    "ArrayReader",
    "ArrayReading",
    "BlockingPut",
    "DBChannel",
    "EventHub",
    "EventSubscription",
    "InitHook",
    "IocState",
    "ManyLock",
    "NumberReader",
    "NumberView",
    "Properties",
    "PutWatch",
    "Range",
    "RawNumber",
    "RawProperties",
    "Reading",
    "RecordInfo",
    "RecordView",
    "TrappedPut",
    "boot",
    "build_isolated",
    "can_read_array",
    "can_read_number",
    "can_view_number",
    "can_view_text",
    "captured_errors",
    "database_links",
    "environment_value",
    "exists",
    "expand_environment",
    "flush_output",
    "forget_locks",
    "get_many",
    "give_errors_back",
    "info_items",
    "init_access_security",
    "ioc_init",
    "ioc_state",
    "keep_errors_in_place",
    "link_texts",
    "load_definition",
    "load_definition_text",
    "load_records",
    "load_records_text",
    "load_template",
    "macro_text",
    "most_template_names",
    "on_init_hook",
    "on_trapped_put",
    "output_since",
    "output_so_far",
    "printed_through",
    "put_notify",
    "put_saved",
    "read_arrays",
    "reading_of",
    "record_count",
    "record_group",
    "record_names",
    "record_types",
    "records",
    "register_command",
    "register_device",
    "register_exit",
    "register_function",
    "register_support",
    "restore",
    "server_report",
    "serves_channel_access",
    "set_access_file",
    "set_log_prefix",
    "set_most_template_names",
    "shell_capture",
    "shell_command",
    "shell_commands",
    "shell_line",
    "shell_print",
    "shutdown",
    "skip_registrar",
    "take_errors",
    "view_numbers",
    "want_errors",
]
