"""The report of EPICS Base's Channel Access server (casr), with escapes for what its clients chose.

Names of users, and of channels with filters, are what a client sent. With line ends in them the report would show clients that are not there, and no
text can tell the names from the rest afterwards. So the names are read from the server's list while it cannot change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ctypes import Structure, c_char_p, c_int, c_uint, c_ushort, c_void_p
from typing import Final

from appliance.ioc.dbcore import _c
from appliance.ioc.dbcore.through import printed_through

__all__ = ["server_report"]

_TCP: Final = 6
_INTERNET: Final = 2
_core: Final = _c.core
_core.casr.argtypes = (c_uint,)
_core.casr.restype = None
_lock: Final = _c.com.epicsMutexLock
_lock.argtypes = (c_void_p,)
_unlock: Final = _c.com.epicsMutexUnlock
_unlock.argtypes = (c_void_p,)
_unlock.restype = None


class _Buffer(Structure):
    """server.h: ``struct message_buffer``."""

    _fields_ = (("buf", c_void_p), ("stk", c_uint), ("maxstk", c_uint), ("cnt", c_uint), ("type", c_int))


class _Client(Structure):
    """server.h: the start of ``struct client``."""

    _fields_ = (
        ("node", _c.ELLNODE),
        ("send", _Buffer),
        ("recv", _Buffer),
        ("locks", c_void_p * 2),
        ("chanListLock", c_void_p),
        ("eventqLock", c_void_p),
        ("chanList", _c.ELLLIST),
        ("chanPendingUpdateARList", _c.ELLLIST),
        ("putNotifyQue", _c.ELLLIST),
        ("family", c_ushort),
        ("port", c_ushort),
        ("address", c_uint),
        ("zero", c_uint * 2),
        ("times", c_uint * 4),
        ("evuser", c_void_p),
        ("pUserName", c_char_p),
        ("pHostName", c_char_p),
        ("blockSem", c_void_p),
        ("sockets", c_int * 2),
        ("proto", c_int),
    )


class _Channel(Structure):
    """server.h: the start of ``struct channel_in_use``."""

    _fields_ = (
        ("node", _c.ELLNODE),
        ("eventq", _c.ELLLIST),
        ("client", c_void_p),
        ("pPutNotify", c_void_p),
        ("ids", c_uint * 2),
        ("time", c_uint * 2),
        ("dbch", c_void_p),
    )


def server_report(level: int, escape: Callable[[str], str]) -> str:
    """Return what ``casr`` prints; nothing if there is no server.

    Args:
        level: How much it prints.
        escape: Makes one line without control characters of a name.
    """
    mutex = c_void_p.in_dll(_core, "clientQlock").value
    if not mutex:
        return ""
    parts: list[str] = []
    # The lock may be taken twice by one thread, as casr does.
    _lock(mutex)
    try:
        names = dict.fromkeys(_chosen())
        with printed_through(parts.append):
            _core.casr(max(level, 0))
    finally:
        _unlock(mutex)
    text = "".join(parts)
    # The longest first: a name may hold what stands around another one.
    for before, name, after in sorted(names, key=lambda each: -len(each[1])):
        shown = name.decode("utf-8", "backslashreplace")
        text = text.replace(f"{before}{shown}{after}", f"{before}{escape(shown)}{after}")
    return text


def _chosen() -> Iterator[tuple[str, bytes, str]]:
    """Give each name with what the report has before and after it."""
    address = _c.ELLLIST.in_dll(_core, "clientQ").node.next
    while address:
        client = _Client.from_address(address)
        if client.proto != _TCP or client.family != _INTERNET:
            # Not what this version of EPICS Base has there: nothing of it is read.
            return
        yield "\tUser '", client.pUserName or b"", "', V"
        yield " '", client.pHostName or b"", "':\n"
        _lock(client.chanListLock)
        try:
            for channels in (client.chanList, client.chanPendingUpdateARList):
                place = channels.node.next
                while place:
                    channel = _Channel.from_address(place)
                    yield "Channel: '", _c.dbChannel.from_address(channel.dbch).name or b"", "'\n"
                    place = channel.node.next
        finally:
            _unlock(client.chanListLock)
        address = client.node.next
