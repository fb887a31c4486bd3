"""Output of shell commands: to where the shell's own goes, a file or an operator's console included."""

from __future__ import annotations

import ctypes
import os
from ctypes import c_char_p, c_int, c_void_p

from appliance.ioc.dbcore import _c
from appliance.ioc.dbcore.boot import flush_output

_libc = ctypes.CDLL(None)
_libc.fdopen.restype = c_void_p
_libc.fdopen.argtypes = (c_int, c_char_p)
_libc.fputs.argtypes = (c_char_p, c_void_p)
_libc.fclose.argtypes = (c_void_p,)
_libc.fflush.argtypes = (c_void_p,)
_get_stdout = _c.com.epicsGetStdout
_get_stdout.restype = c_void_p
_set_stdout = _c.com.epicsSetThreadStdout
_set_stdout.argtypes = (c_void_p,)
_set_stdout.restype = None
_set_stderr = _c.com.epicsSetThreadStderr
_set_stderr.argtypes = (c_void_p,)
_set_stderr.restype = None

#: Octets of output that a captured command may leave; what is beyond it is cut off.
MAX_OUTPUT = 1 << 20


def shell_print(text: str) -> None:
    """Print a line, from a command that :func:`.support.register_command` made."""
    _libc.fputs(_c.raw(text.replace("\0", "\\0") + "\n"), _get_stdout())


def shell_capture(command: str) -> tuple[bool, str]:
    """Run one line of the IOC shell and return whether it succeeded and what it printed.

    Only the calling thread's output is turned aside (epicsSetThreadStdout). What EPICS reports through its error
    log goes where that goes.
    """
    descriptor = os.memfd_create("iocsh")
    try:
        stream = _libc.fdopen(os.dup(descriptor), b"w")
        _set_stdout(stream)
        _set_stderr(stream)
        try:
            status = _c.iocshCmd(_c.raw(command))
        finally:
            _set_stdout(None)
            _set_stderr(None)
            _libc.fclose(stream)
        flush_output()
        size = os.fstat(descriptor).st_size
        data = os.pread(descriptor, min(size, MAX_OUTPUT), 0)
    finally:
        os.close(descriptor)
    text = data.decode("utf-8", "replace")
    return status == 0, text if size <= MAX_OUTPUT else text + f"\n... ({size} octets)\n"
