"""Numbers of the wire: commands, control messages, header flags and sub-commands.

Source: PVAccess protocol specification, sections 4.2 to 4.5, 7.1, 8.2 and 9.
Plain integers, not enumerations: they are compared in the hottest loops of the package.
"""

from __future__ import annotations

from typing import Final

MAGIC: Final = 0xCA
VERSION: Final = 2

FLAG_CONTROL: Final = 0x01
FLAG_SEGMENT_NONE: Final = 0x00
FLAG_SEGMENT_FIRST: Final = 0x10
FLAG_SEGMENT_LAST: Final = 0x20
FLAG_SEGMENT_MIDDLE: Final = 0x30
FLAG_SEGMENT_MASK: Final = 0x30
FLAG_SERVER: Final = 0x40
FLAG_BIG_ENDIAN: Final = 0x80

CMD_BEACON: Final = 0
CMD_CONNECTION_VALIDATION: Final = 1
CMD_ECHO: Final = 2
CMD_SEARCH: Final = 3
CMD_SEARCH_RESPONSE: Final = 4
CMD_AUTHNZ: Final = 5
CMD_ACL_CHANGE: Final = 6
CMD_CREATE_CHANNEL: Final = 7
CMD_DESTROY_CHANNEL: Final = 8
CMD_CONNECTION_VALIDATED: Final = 9
CMD_GET: Final = 10
CMD_PUT: Final = 11
CMD_PUT_GET: Final = 12
CMD_MONITOR: Final = 13
CMD_ARRAY: Final = 14
CMD_DESTROY_REQUEST: Final = 15
CMD_PROCESS: Final = 16
CMD_GET_FIELD: Final = 17
CMD_MESSAGE: Final = 18
CMD_MULTIPLE_DATA: Final = 19
CMD_RPC: Final = 20
CMD_CANCEL_REQUEST: Final = 21
CMD_ORIGIN_TAG: Final = 22

CTRL_SET_MARKER: Final = 0
CTRL_ACK_MARKER: Final = 1
CTRL_SET_ENDIAN: Final = 2

SUB_PROCESS: Final = 0x04
"""PUT_GET and PROCESS: process; MONITOR: the start/stop bit."""
SUB_INIT: Final = 0x08
SUB_DESTROY: Final = 0x10
SUB_GET: Final = 0x40
"""GET direction of GET, PUT and PUT_GET; with ``SUB_PROCESS`` the start of a MONITOR."""
SUB_ACK: Final = 0x80
"""MONITOR: a count of updates to acknowledge follows; PUT_GET: read back what a put would start from."""

SUB_MONITOR_STOP: Final = 0x04
SUB_MONITOR_START: Final = 0x44

BUFFER_SIZE: Final = 0x10000
"""Octets of our receive buffer, as the handshake tells the peer. No peer depends on it."""
REGISTRY_SIZE: Final = 0x7FFF
"""Entries of our type registry, as the handshake tells the peer. No peer depends on it."""

SEARCH_MUST_REPLY: Final = 0x01
SEARCH_UNICAST: Final = 0x80

PERMIT_PUT: Final = 0x01
PERMIT_PUT_GET: Final = 0x02
PERMIT_RPC: Final = 0x04
PERMIT_ALL: Final = PERMIT_PUT | PERMIT_PUT_GET | PERMIT_RPC

MESSAGE_INFO: Final = 0
MESSAGE_WARNING: Final = 1
MESSAGE_ERROR: Final = 2
MESSAGE_FATAL: Final = 3

OPERATION_NAMES: Final = {
    CMD_GET: "GET",
    CMD_PUT: "PUT",
    CMD_PUT_GET: "PUT_GET",
    CMD_MONITOR: "MONITOR",
    CMD_RPC: "RPC",
    CMD_PROCESS: "PROCESS",
    CMD_GET_FIELD: "GET_FIELD",
    CMD_ARRAY: "ARRAY",
}
"""Commands that open an operation on a channel, and what they are called in a message to a person."""
