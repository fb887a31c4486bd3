"""Ports that both ends must know before either is started."""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import random
import socket
import tempfile
from pathlib import Path

HOST = "127.0.0.1"
FIRST, BEHIND = 20_000, 32_000
"""Below the range from which the kernel hands out ports: nobody gets one of these by chance."""

_ours: set[int] = set()


def free_port() -> int:
    """Give a port that is free for TCP and for UDP, and that no other test of this machine gets.

    It stays claimed until this process ends: between the choice and the moment in which a daemon takes it, another
    process of the tests would find it free, too. A claim is a lock on one octet of a file, so a crash gives it back.
    """
    for port in random.sample(range(FIRST, BEHIND), BEHIND - FIRST):
        if port not in _ours and _claim(port):
            _ours.add(port)
            if _is_free(port):
                return port
    raise AssertionError(f"no port from {FIRST} to {BEHIND - 1} is free")


@functools.cache
def _claims() -> int:
    """Open the file of claims: once, because to close any descriptor of it would give all locks back."""
    path = Path(tempfile.gettempdir()) / f"spva-test-ports-{os.geteuid()}"
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _claim(port: int) -> bool:
    try:
        fcntl.lockf(_claims(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        return False
    return True


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                return False
    return True
