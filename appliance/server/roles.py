"""Which groups this host's own user database gives to an account (pvxs ``osdGetRoles``).

The database may be a directory service at the other end of a network, which answers late or never: it is asked in
threads of its own, and nobody has a role until it has said so.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

__all__ = ["Roles"]

_log: Final = logging.getLogger(__name__)
_KEEP_S: Final = 60.0
_MAX: Final = 1024
"""Accounts that are remembered, accounts that are being looked up, and clients that wait for one of these: all are
the clients' to choose."""
_THREADS: Final = 4
_NONE: Final[frozenset[str]] = frozenset()

_Told = Callable[[frozenset[str]], None]


class _Known(NamedTuple):
    """What the database said of one account, and when."""

    at: float
    roles: frozenset[str]


class Roles:
    """Looks up groups and remembers them for a minute: the lookup may be slow, and many clients reconnect at once.

    All methods are the event loop's to call.
    """

    __slots__ = ("_asked", "_known", "_lock", "_look_up", "_pending", "_threads")

    def __init__(self, look_up: Callable[[str], frozenset[str]] | None = None) -> None:
        self._look_up = _look_up if look_up is None else look_up
        self._known: dict[str, _Known] = {}
        self._pending: dict[str, list[_Told]] = {}
        self._lock = threading.Lock()
        self._asked: deque[tuple[AbstractEventLoop, str]] = deque()
        self._threads = 0

    def known(self, account: str) -> frozenset[str] | None:
        """Return the groups of ``account`` if they are remembered; None if they are not."""
        found = self._known.get(account)
        return found.roles if found is not None and time.monotonic() - found.at < _KEEP_S else None

    def ask(self, account: str, tell: _Told, loop: AbstractEventLoop) -> None:
        """Look up the groups of ``account`` and call ``tell`` with them in ``loop``: with none if the host does not know the name.

        When too many are being looked up already, ``tell`` is called with none at once.
        """
        waiting = self._pending.get(account)
        if len(self._pending if waiting is None else waiting) >= _MAX:
            _log.warning(
                "too many accounts are being looked up: %.64r gets no roles; check that the host's user database answers",
                account,
            )
            tell(_NONE)
            return
        if waiting is not None:
            waiting.append(tell)
            return
        self._pending[account] = [tell]
        with self._lock:
            self._asked.append((loop, account))
            if self._threads == _THREADS:
                return
            self._threads += 1
        # A daemon: a database that never answers must not keep the process from ending.
        threading.Thread(target=self._work, name="roles", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._asked:
                    self._threads -= 1
                    return
                loop, account = self._asked.popleft()
            try:
                roles = self._look_up(account)
            except Exception:  # noqa: BLE001 - whatever fails, the account has no roles
                _log.exception("looking up the groups of %.64r failed: it gets no roles", account)
                roles = _NONE
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._found, account, roles)

    def _found(self, account: str, roles: frozenset[str]) -> None:
        known = self._known
        known.pop(account, None)
        if len(known) >= _MAX:
            del known[next(iter(known))]  # the oldest
        known[account] = _Known(time.monotonic(), roles)
        for tell in self._pending.pop(account, ()):
            tell(roles)


def _look_up(account: str) -> frozenset[str]:
    import grp
    import os
    import pwd

    try:
        primary = pwd.getpwnam(account).pw_gid
        groups = os.getgrouplist(account, primary)
    except (KeyError, ValueError, OSError):
        return _NONE
    names = set()
    for group in groups:
        try:
            names.add(grp.getgrgid(group).gr_name)
        except (KeyError, OSError):
            continue
    return frozenset(names)
