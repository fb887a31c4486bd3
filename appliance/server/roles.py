"""Which groups this host's own user database gives to an account (pvxs ``osdGetRoles``)."""

from __future__ import annotations

import time
from typing import Final

__all__ = ["Roles"]

_KEEP_S: Final = 60.0
_MAX: Final = 1024


class Roles:
    """Looks groups up and remembers them for a minute: a name service may be slow, and clients reconnect in swarms."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, frozenset[str]]] = {}

    def __call__(self, account: str) -> frozenset[str]:
        """Give the groups of ``account``; none for a name that this host does not know."""
        now = time.monotonic()
        known = self._known.get(account)
        if known is not None and now - known[0] < _KEEP_S:
            return known[1]
        roles = _look_up(account)
        if len(self._known) >= _MAX:
            self._known.clear()
        self._known[account] = (now, roles)
        return roles


def _look_up(account: str) -> frozenset[str]:
    import grp
    import os
    import pwd

    try:
        primary = pwd.getpwnam(account).pw_gid
        groups = os.getgrouplist(account, primary)
    except (KeyError, ValueError, OSError):
        return frozenset()
    names = set()
    for group in groups:
        try:
            names.add(grp.getgrgid(group).gr_name)
        except KeyError:
            continue
    return frozenset(names)
