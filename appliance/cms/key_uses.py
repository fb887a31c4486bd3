"""What keys were used for: the certificates of a key, read for many requests at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

import sqlalchemy as sa

from appliance.cms import schema

__all__ = ["KeyUse", "KeyUses"]


class KeyUse(NamedTuple):
    """A certificate that a key was used for."""

    serial: int
    subject: str
    usage: str
    barred: bool


_COLUMNS: Final = tuple(schema.certs.c[name] for name in (*KeyUse._fields, "key_id", "skid"))
_OF_ISSUER: Final = sa.select(*_COLUMNS).where(schema.certs.c.issuer == sa.bindparam("by"))
# Two indexes, one for each half. Made once: SQLAlchemy takes longer to compile a new statement than SQLite takes to run it.
_OF_KEY: Final = _OF_ISSUER.where(
    sa.or_(schema.certs.c.key_id == sa.bindparam("key"), schema.certs.c.skid == sa.bindparam("name"))
)
_OF_KEYS: Final = _OF_ISSUER.where(
    sa.or_(
        schema.certs.c.key_id.in_(sa.bindparam("keys", expanding=True)),
        schema.certs.c.skid.in_(sa.bindparam("names", expanding=True)),
    )
)


class KeyUses:
    """The uses of keys, inside one transaction. A key is named by its ``key_id`` and its ``skid``; each of them counts.

    Args:
        connection: The transaction's connection.
        issuer: Whose certificates count.
    """

    __slots__ = ("_by_key", "_by_skid", "_connection", "_issuer", "_new", "_read")

    def __init__(self, connection: sa.Connection, issuer: str) -> None:
        self._connection = connection
        self._issuer = issuer
        self._read: set[tuple[str, str]] = set()
        self._by_key: dict[str, list[KeyUse]] = {}
        self._by_skid: dict[str, list[KeyUse]] = {}
        self._new: dict[str, list[KeyUse]] = {}

    def prefetch(self, keys: Iterable[tuple[str, str]]) -> None:
        """Read the uses of many keys at once."""
        wanted = set(keys) - self._read
        if not wanted:
            return
        if len(wanted) == 1:
            ((key_id, skid),) = wanted
            rows = self._connection.execute(_OF_KEY, {"by": self._issuer, "key": key_id, "name": skid})
        else:
            names = {"keys": [key_id for key_id, _ in wanted], "names": [skid for _, skid in wanted]}
            rows = self._connection.execute(_OF_KEYS, {"by": self._issuer, **names})
        self._read |= wanted
        known = {use.serial for uses in (*self._by_key.values(), *self._by_skid.values()) for use in uses}
        for serial, subject, usage, barred, key_id, skid in rows.all():
            if serial in known:
                continue
            use = KeyUse(serial, subject, usage, bool(barred))
            self._by_key.setdefault(key_id, []).append(use)
            self._by_skid.setdefault(skid, []).append(use)

    def of(self, key_id: str, skid: str) -> list[KeyUse]:
        """Return all certificates of a key, in any state."""
        self.prefetch(((key_id, skid),))
        found = {use.serial: use for use in self._by_key.get(key_id, ())}
        found.update((use.serial, use) for use in self._by_skid.get(skid, ()))
        return [*found.values(), *self._new.get(key_id, ())]

    def add(self, key_id: str, use: KeyUse) -> None:
        """Note a certificate that is not in the database yet."""
        if key_id:
            self._new.setdefault(key_id, []).append(use)

    def forget(self) -> None:
        """Read all anew: the database has changed."""
        self._read, self._by_key, self._by_skid, self._new = set(), {}, {}, {}
