"""Puts that wait until the record and everything that it triggered have been processed (``record._options.block``; dbNotify.h).

EPICS calls back on its own threads, or during the call itself if there is nothing to wait for.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from appliance.errors import ApplianceError
from appliance.ioc.dbcore import _c
from appliance.ioc.dbcore.channel import DBChannel, PutWatch
from appliance.ioc.dbcore.put_value import encode
from appliance.ioc.dbcore.words import status_text

_log = logging.getLogger(__name__)

_PUT_PROCESS_REQUEST = 1
_PUT_DISABLED, _PUT_FIELD, _PUT = 0, 1, 2
_OK, _CANCELED, _ERROR, _DISABLED = 0, 1, 2, 3

_PUT_CALLBACK: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_c.processNotify), ctypes.c_int)
_DONE_CALLBACK: Final = ctypes.CFUNCTYPE(None, ctypes.POINTER(_c.processNotify))


class BlockingPut:
    """A running put; see :func:`put_notify`."""

    def __init__(
        self,
        channel: DBChannel,
        value: Any,
        done: Callable[[str | None], None],
        *,
        has_value: bool,
        always: bool,
        watch: PutWatch | None = None,
    ) -> None:
        self._channel = channel
        self._always = always
        self._watch = watch
        channel.refuse_closed()
        self._encoded = encode(channel, value) if has_value else None
        # The put may be done in a thread of EPICS, while this channel is read in another.
        self._own = DBChannel(channel.name) if watch is not None and has_value else None
        self._done = done
        self._error: str | None = None
        self._finished = False
        self._notify: _c.processNotify | None = None
        self._key = 0

    def cancel(self) -> None:
        """Stop waiting (dbNotifyCancel): ``done`` is not called any more, but processing continues."""
        with _lock:
            notify = None if self._finished else self._notify
            self._finished = True
            self._done = _nothing
        if notify is not None:
            _c.dbNotifyCancel(notify)
            _retire(self)

    def _put(self, kind: int) -> int:
        if kind == _PUT_DISABLED:
            return self._refuse(f"{self._channel.record} refuses puts: its field DISP is set")
        if self._encoded is None:
            return int(self._always)
        data = self._encoded
        if self._own is not None and self._watch is not None:
            try:
                self._watch.begin(self._own.get().value)
            except ApplianceError as error:
                return self._refuse(str(error))
        # putFieldType: a link, and EPICS holds no lock; putType: EPICS holds the record's lock.
        put = _c.dbChannelPutField if kind == _PUT_FIELD else _c.dbChannelPut
        status = put(self._channel.address, data.dbr, data.address, data.elements)
        if status:
            return self._refuse(f"cannot write {self._channel.name}: {status_text(status)}")
        return 1

    def _refuse(self, error: str) -> int:
        self._error = error
        if self._watch is not None:
            self._watch.failed(error)
        return 0

    def _complete(self, status: int) -> None:
        with _lock:
            if self._finished:
                return
            self._finished = True
        _retire(self)
        error = self._error
        if error is None and status == _DISABLED:
            error = f"{self._channel.record} refuses puts"
        elif error is None and status != _OK:
            error = f"processing of {self._channel.record} did not complete"
        self._done(error)


def _nothing(_: str | None) -> None:
    """Replace a callback that is not wanted any more."""


_lock = threading.Lock()
_keys = itertools.count(1)
_active: dict[int, BlockingPut] = {}
# EPICS still writes into a processNotify after its done callback: it may be used again only when pnotifyPvt is
# NULL, and is never given back to Python's allocator.
_spare: deque[_c.processNotify] = deque()


def _retire(put: BlockingPut) -> None:
    with _lock:
        if _active.pop(put._key, None) is not None and put._notify is not None:
            _spare.append(put._notify)
    if put._own is not None:
        put._own.close()


def _on_put(pointer: Any, kind: int) -> int:
    put = _active.get(pointer.contents.usrPvt or 0)
    if put is None:
        return 0
    try:
        return put._put(kind)
    except Exception:  # noqa: BLE001 - an exception must not enter C
        _log.exception("put of %s failed", put._channel.name)
        put._error = f"cannot write {put._channel.name}"
        return 0


def _on_done(pointer: Any) -> None:
    put = _active.get(pointer.contents.usrPvt or 0)
    if put is not None:
        try:
            put._complete(pointer.contents.status)
        except Exception:  # noqa: BLE001 - an exception must not enter C
            _log.exception("completion of a put to %s failed", put._channel.name)


_put_callback: Final = _PUT_CALLBACK(_on_put)
_done_callback: Final = _DONE_CALLBACK(_on_done)
_put_address: Final = ctypes.cast(_put_callback, ctypes.c_void_p)
_done_address: Final = ctypes.cast(_done_callback, ctypes.c_void_p)
_NO_VALUE: Final = object()


def put_notify(
    channel: DBChannel,
    done: Callable[[str | None], None],
    value: Any = _NO_VALUE,
    *,
    process: bool | None = None,
    watch: PutWatch | None = None,
) -> BlockingPut:
    """Write, process and call ``done`` when everything has completed (dbProcessNotify).

    Args:
        channel: must stay open until ``done`` or :meth:`BlockingPut.cancel`.
        done: called once, with ``None`` or the reason of a failure, on any thread, perhaps before this
            function returns.
        value: the value to write; without it the record is only processed.
        process: True: always process, whatever the field and SCAN; None: as the database says.
        watch: called before the put, in the thread in which EPICS does it, and when it fails; also if the client
            does not wait for the end.

    Raises:
        PVDataError: the value does not fit the field.
        ApplianceError: the IOC is not running, or ``watch`` refuses.

    """
    if _c.getIocState() < 2:
        raise ApplianceError("the IOC is not initialised: nothing can be processed")
    has_value = value is not _NO_VALUE
    always = process is True or not has_value
    if always and has_value and (channel.is_link or channel.field == "DISP"):
        # Links need their own locks, and DISP decides about processing: both are written before it.
        channel.put(value, process=False, watch=watch)
        has_value, watch = False, None
    try:
        put = BlockingPut(
            channel, value if has_value else None, done, has_value=has_value, always=always, watch=watch
        )
        if watch is not None and not has_value:
            watch.begin(None)
    except ApplianceError as error:
        if watch is not None:
            watch.failed(error)
        raise
    # A put to PROC processes whatever SCAN is; the value is written under the same lock, before that.
    target = channel.process_channel if always else channel
    with _lock:
        put._key = next(_keys)
        notify = _spare.popleft() if _spare and not _spare[0].pnotifyPvt else _c.processNotify()
        put._notify = notify
        _active[put._key] = put
        notify.requestType = _PUT_PROCESS_REQUEST
        notify.chan = target.address
        notify.putCallback = _put_address
        notify.doneCallback = _done_address
        notify.usrPvt = put._key
    _c.dbProcessNotify(notify)
    return put
