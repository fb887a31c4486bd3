"""A sandbox as systemd makes one with ``SystemCallFilter=~@privileged``, for a program in a process of its own."""

from __future__ import annotations

import ctypes
import platform
import struct
import subprocess
import sys

_CHOWN = {"x86_64": (92, 93, 94, 260), "aarch64": (54, 55)}
"""chown, fchown, lchown and fchownat, as far as a machine has them."""
_NO_NEW_PRIVS, _SECCOMP, _FILTER = 38, 22, 2


def forbid_chown() -> None:
    """From now on every chown of this process fails with EPERM, also one that would change nothing."""
    numbers = _CHOWN[platform.machine()]
    allow, refuse = 0x7FFF0000, 0x00050001
    steps = [(0x20, 0, 0, 0)]  # the number of the call
    steps += [(0x15, len(numbers) - at, 0, number) for at, number in enumerate(numbers)]
    steps += [(0x06, 0, 0, allow), (0x06, 0, 0, refuse)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    counted = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(program)))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_NO_NEW_PRIVS, 1, 0, 0, 0), (_SECCOMP, _FILTER, counted, 0, 0)):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "prctl")


def run_without_chown(program: str, *arguments: object) -> str:
    """What a program in Python prints that may not call chown."""
    begin = f"from {__name__} import {forbid_chown.__name__} as begin\nbegin()\n"
    command = [sys.executable, "-c", begin + program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
