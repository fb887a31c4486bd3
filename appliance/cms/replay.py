"""Used tokens, and proofs that come again.

Each token is accepted once, also after restarts, clock changes and a restored database.

They are in the database and, before a use is answered, in a file beside it, which restoring a backup does not touch. If the
database remembers such a file and the file is missing (a backup on a new host), or lacks what the database knows, nobody
knows which tokens were used since the backup: tokens issued before this moment are void. With several nodes on one database
each has a file of its own, for the tokens that were used at it.

Who lost the answer asks again, perhaps at another node, with the same token, and proves the same key (docs/decisions/0105).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from typing import Final, NamedTuple

import sqlalchemy as sa

from appliance.cms.grouped import insert_missing
from appliance.cms.inuse import is_at
from appliance.cms.schema import audit, known, meta, of_node, replay
from appliance.cms.store import Store
from appliance.cms.transaction import StoreError, Transaction
from appliance.config.files import write_private
from appliance.errors import ApplianceError, ConfigurationError

__all__ = ["StoredReplay", "TokenJournal", "is_old_proof"]

_log: Final = logging.getLogger(__name__)

_USE: Final = sa.text(
    "INSERT INTO replay (issuer, token, until, node, key_id, usage, used_at) "
    "VALUES (:issuer, :token, :until, :node, :key_id, :usage, :used_at) ON CONFLICT DO NOTHING"
)
"""The primary key decides. One statement, which SQLite and PostgreSQL spell alike."""
_FIRST_USE: Final = sa.select(replay.c.key_id, replay.c.usage, replay.c.used_at).where(
    replay.c.issuer == sa.bindparam("by"), replay.c.token == sa.bindparam("hash")
)
_CREATED: Final = sa.select(audit.c.at, audit.c.record).where(
    audit.c.serial == sa.bindparam("serial"), audit.c.action == "create"
)
_AGAIN_S: Final = 60
"""For so long after its first use a token, or a proof, may come again from the holder of the same key, who lost the answer."""
_HEADER: Final = "pvacms tokens 1\n"
_KEPT_S: Final = 86400
_LARGE: Final = 1 << 20
FORGOTTEN: Final = "tokens_forgotten"
"""In the table ``meta``: the latest end of a forgotten token. A token that ended no later may have been used."""
VOID: Final = "tokens_void"
"""In the table ``meta``: tokens issued before this second may have been used."""
BESIDE: Final = "tokens_beside"
"""In the table ``meta``: there is a file beside the database. With several nodes each has an entry, with its name behind a colon."""


class _Use(NamedTuple):
    issuer: str
    token: str
    until: int


class TokenJournal:
    """The file beside the database. Only the database's thread writes it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1

    def read(self) -> list[_Use] | None:
        """Return the file's content; None if there is no file.

        Raises:
            ConfigurationError: The file cannot be read, or is damaged.
        """
        try:
            with open(self.path, "rb") as file:  # noqa: PTH123 - path is text
                text = file.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigurationError(f"cannot read: {error.strerror}", file=self.path) from error
        found = []
        # A last line without an end was not answered.
        for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1):
            words = line.split(" ", 2)
            if len(words) == 3 and words[0].isdecimal() and len(words[1]) == 64:
                found.append(_Use(words[2], words[1], int(words[0])))
            elif line + "\n" != _HEADER:
                raise ConfigurationError(
                    "this is not a line of the file of used tokens, so the file is damaged: move it away; tokens "
                    "issued before now are then refused",
                    file=self.path,
                    line=number,
                )
        return found

    def write(self, uses: Iterable[_Use]) -> None:
        """Replace the file.

        Raises:
            ConfigurationError: A setting or a file cannot be used.
        """
        lines = "".join(f"{use.until} {use.token} {use.issuer}\n" for use in uses)
        write_private(self.path, (_HEADER + lines).encode())
        self.close()
        try:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise ConfigurationError(f"cannot open: {error.strerror}", file=self.path) from error

    def add(self, use: _Use) -> bool:
        """Append a use and wait until it is on disk.

        Returns:
            Whether the file has become large.

        Raises:
            StoreError: The file cannot be written.
        """
        if self.lost:
            raise StoreError(self.lost)
        line = f"{use.until} {use.token} {use.issuer}\n".encode()
        before = os.fstat(self._fd).st_size
        try:
            if os.write(self._fd, line) != len(line):
                raise OSError(28, "No space left on device")  # noqa: TRY301
            os.fdatasync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, before)
            raise StoreError(
                f"the file of used tokens {self.path} cannot be written: {error.strerror}"
            ) from error
        return before > _LARGE

    @property
    def lost(self) -> str:
        """Why the open file is not the one at its path any more; empty if it is."""
        if self._fd < 0 or is_at(self._fd, self.path):
            return ""
        return (
            f"the file of used tokens {self.path} was removed or replaced while the service ran; put it back, or restart the "
            "service: tokens that were issued before are then refused"
        )

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class StoredReplay:
    """`appliance.authn.jwt.replay.ReplayStore` in the certificate database."""

    def __init__(self, store: Store, journal: TokenJournal) -> None:
        self._store = store
        self._journal = journal
        self._swept = 0.0

    @property
    def _beside(self) -> str:
        return of_node(BESIDE, self._store.node)

    def load(self, now: float) -> None:
        """Combine the database and the file beside it, before the service starts.

        Raises:
            ApplianceError: The database or the file cannot be read or written.
        """
        journal = self._journal
        beside = journal.read()
        node, remembered = self._store.node, self._beside

        def job(transaction: Transaction) -> tuple[list[_Use], str]:
            connection = transaction.connection
            wrong = ""
            if known(connection, remembered):
                there = {(use.issuer, use.token) for use in beside or ()}
                if beside is None:
                    wrong = "is missing"
                elif any((use.issuer, use.token) not in there for use in _uses(connection, node)):
                    # A use is in the file before it is in the database: this is an older file, or a part of one.
                    wrong = "is older than the database, or a part of it is missing"
                if wrong:
                    set_number(connection, VOID, int(now))
            if beside:
                # Whose key it was is not in the file, so nobody may use these tokens again.
                unnamed = {"node": node, "key_id": "", "usage": "", "used_at": 0}
                insert_missing(connection, replay, [use._asdict() | unnamed for use in beside])
            set_number(connection, remembered, 1)
            return _uses(connection, node), wrong

        uses, wrong = self._store.run(job)
        if wrong:
            _log.warning(
                "the file of used tokens %s %s: tokens that were issued before now are refused; fetch new ones",
                journal.path,
                wrong,
            )
        journal.write(uses)

    def make_good(self, transaction: Transaction, now: float) -> None:
        """Record again what a database has lost while the service ran; tokens of before are void.

        Args:
            transaction: The transaction, in the database's thread.
            now: The present time (POSIX seconds).
        """
        connection = transaction.connection
        unnamed = {"node": self._store.node, "key_id": "", "usage": "", "used_at": 0}
        uses = [use._asdict() | unnamed for use in self._journal.read() or ()]
        if uses:
            insert_missing(connection, replay, uses)
        # Nobody knows what other nodes have used.
        set_number(connection, VOID, int(now))

    async def use(
        self,
        issuer: str,
        token_hash: str,
        until: float,
        now: float,
        issued: float | None = None,
        *,
        key_id: str = "",
        usage: str = "",
    ) -> bool:
        """Record a use, committed before this returns. See `appliance.authn.jwt.replay.ReplayStore`.

        Returns:
            False if the token was used before, or may have been.

        Raises:
            StoreError: The use could not be recorded.
        """
        sweep = now - self._swept > 600
        if sweep:
            self._swept = now
        use = _Use(issuer[:512], token_hash, int(until) + 1)
        node = self._store.node

        def job(transaction: Transaction) -> bool:
            connection = transaction.connection
            if sweep:
                _sweep(connection, int(now))
            if use.until <= int(known(connection, FORGOTTEN) or 0):
                return False
            void = int(known(connection, VOID) or 0)
            if issued is None and use.until <= void + _KEPT_S:
                return False
            if issued is not None and issued < void:
                return False
            where = {"node": node, "key_id": key_id, "usage": usage, "used_at": int(now)}
            if connection.execute(_USE, use._asdict() | where).rowcount != 1:
                return False
            if self._journal.add(use):
                try:
                    self._journal.write(_uses(connection, node))
                except ApplianceError as error:
                    raise StoreError(str(error)) from error
            return True

        return await self._store.submit(job)

    async def repeats(self, issuer: str, token_hash: str, now: float, *, key_id: str, usage: str) -> int:
        """Return when a used token that comes again was used first. See `appliance.authn.jwt.replay.ReplayStore`.

        Raises:
            StoreError: The database could not be used.
        """

        def job(transaction: Transaction) -> int:
            connection = transaction.connection
            first = connection.execute(_FIRST_USE, {"by": issuer[:512], "hash": token_hash}).first()
            again = (
                first is not None
                and (first.key_id, first.usage) == (key_id, usage)
                and abs(int(now) - first.used_at) <= _AGAIN_S
                and int(known(connection, VOID) or 0) <= first.used_at
            )
            return int(first.used_at) if again and first is not None else 0

        return await self._store.submit(job) if key_id else 0


def is_old_proof(
    transaction: Transaction, serial: int, made: int, at: int, *, may_be_repeated: bool = True
) -> bool:
    """Whether a proof was made no later than the one that a certificate was requested with, and comes too late to be its repetition.

    Then somebody may have recorded it. Each node remembers the proofs that it was sent; this holds at all nodes, and after a
    restart.

    Args:
        transaction: The transaction.
        serial: The certificate's serial number.
        made: When the proof was made, by its maker's clock (POSIX seconds).
        at: The present time (POSIX seconds).
        may_be_repeated: Whether the same proof counts for a minute.
    """
    transaction.flush()
    created = transaction.connection.execute(_CREATED, {"serial": str(serial)}).first()
    if created is None:
        return not may_be_repeated
    first = int(json.loads(created.record).get("proof_made", 0))
    is_repetition = may_be_repeated and abs(at - created.at) <= _AGAIN_S
    return made < first or (made == first and not is_repetition)


def _sweep(connection: sa.Connection, now: int) -> None:
    """Forget tokens that ended more than a day ago, and remember until when: somebody may set the clock back."""
    old = replay.c.until < now - _KEPT_S
    latest = connection.execute(sa.select(sa.func.max(replay.c.until)).where(old)).scalar()
    if latest is not None:
        connection.execute(sa.delete(replay).where(old))
        set_number(connection, FORGOTTEN, max(int(latest), int(known(connection, FORGOTTEN) or 0)))


def _uses(connection: sa.Connection, node: str) -> list[_Use]:
    """Return the uses that the file of a node has to have; without a name, of the only service, all of them."""
    query = sa.select(replay.c.issuer, replay.c.token, replay.c.until).order_by(replay.c.until)
    return [_Use(*row) for row in connection.execute(query.where(replay.c.node == node) if node else query)]


def set_number(connection: sa.Connection, key: str, value: int) -> None:
    """Write a number into the table ``meta``."""
    if connection.execute(sa.update(meta).where(meta.c.key == key).values(value=str(value))).rowcount == 0:
        connection.execute(sa.insert(meta).values(key=key, value=str(value)))
