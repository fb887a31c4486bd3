"""What keys were used for: the certificates of a key, read for many requests at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from appliance.cms.statements import Several

__all__ = ["OF_KEYS", "KeyUse", "KeyUses"]


class KeyUse(NamedTuple):
    """That a key was used for a certificate, or for several that are alike."""

    subject: str
    usage: str
    barred: bool


# Any number of certificates may have one key. All that counts is whether one of them is barred, is the service's own, or has
# another subject; so the first and the last subject of those that are alike stand for all.
# Of all authorities: a key that is barred stays barred when a new authority takes over.
# Rows of the first version have no `key_id`. In others it says all that `skid` does. One index serves both halves.
OF_KEYS: Final = Several(
    "SELECT key_id, skid, usage, barred, min(subject), max(subject) FROM certs "
    "WHERE key_id {} OR (key_id = '' AND skid {}) GROUP BY key_id, skid, usage, barred"
)


class KeyUses:
    """The uses of keys, inside one transaction. A key is named by its ``key_id`` and its ``skid``; each of them counts.

    Args:
        connection: The transaction's connection.
    """

    __slots__ = ("_by_key", "_by_skid", "_connection", "_new", "_read")

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._read: set[tuple[str, str]] = set()
        self._by_key: dict[str, set[KeyUse]] = {}
        self._by_skid: dict[str, set[KeyUse]] = {}
        self._new: dict[str, set[KeyUse]] = {}

    def prefetch(self, keys: Iterable[tuple[str, str]]) -> None:
        """Read the uses of many keys at once."""
        wanted = list(self.missing(keys))
        if wanted:
            names = [key_id for key_id, _ in wanted], [skid for _, skid in wanted]
            self.take(wanted, OF_KEYS.rows(self._connection, *names))

    def missing(self, keys: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
        """Return those of some keys whose uses were not read yet."""
        return set(keys) - self._read

    def take(self, keys: Iterable[tuple[str, str]], rows: Iterable[Sequence[Any]]) -> None:
        """Take what was read of keys: what is alike, and the first and the last subject."""
        self._read.update(keys)
        for key_id, skid, usage, barred, first, last in rows:
            uses = {KeyUse(subject, usage, bool(barred)) for subject in (first, last)}
            self._by_key.setdefault(key_id, set()).update(uses)
            self._by_skid.setdefault(skid, set()).update(uses)

    def of(self, key_id: str, skid: str) -> list[KeyUse]:
        """Return what a key was used for, whatever has become of it."""
        self.prefetch(((key_id, skid),))
        nothing: frozenset[KeyUse] = frozenset()
        found = self._by_key.get(key_id, nothing) | self._by_skid.get(skid, nothing)
        return [*found, *self._new.get(key_id, nothing)]

    def add(self, key_id: str, use: KeyUse) -> None:
        """Note a certificate that is not in the database yet."""
        if key_id:
            self._new.setdefault(key_id, set()).add(use)

    def forget(self) -> None:
        """Read all anew: the database has changed."""
        self._read, self._by_key, self._by_skid, self._new = set(), {}, {}, {}
