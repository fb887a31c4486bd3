"""Check the audit in the database."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import sqlalchemy as sa

from appliance.cms.schema import audit
from appliance.cms.store import engine_for, is_sqlite
from appliance.daemon.audit import AuditFinding, canonical, verify
from appliance.errors import ConfigurationError

__all__ = ["verify_audit"]


def verify_audit(where: str, *, head: str | None = None) -> AuditFinding:
    """Check the whole chain of a database, which may be in use.

    Raises:
        ConfigurationError: A setting or a file cannot be used.
    """
    import os

    if is_sqlite(where) and not os.path.isfile(where):  # noqa: PTH113
        raise ConfigurationError("the database does not exist", file=where)
    engine = engine_for(where, read_only=is_sqlite(where))
    try:
        with engine.connect() as connection:
            rows = connection.execute(
                sa.select(
                    audit.c.seq, audit.c.at, audit.c.action, audit.c.serial, audit.c.record, audit.c.hash
                ).order_by(audit.c.seq)
            )
            return verify(_records(rows), head=head)
    except sa.exc.SQLAlchemyError as error:
        raise ConfigurationError(
            f"the audit cannot be read: {str(getattr(error, 'orig', error)).partition(chr(10))[0]}",
            file=where,
        ) from error
    finally:
        engine.dispose()


def _records(rows: Iterable[Any]) -> Iterator[tuple[dict[str, Any], str]]:
    for expected, (seq, at, action, serial, text, stored) in enumerate(rows, 1):
        try:
            record = json.loads(text)
            same = isinstance(record, dict) and canonical(record).decode() == text
        except (ValueError, RecursionError, ConfigurationError):
            same, record = False, {}
        columns = {"seq": seq, "at": at, "action": action, "serial": serial}
        # The columns beside the record are for queries. They must say what the sealed record says.
        if not same or seq != expected or any(record.get(key) != value for key, value in columns.items()):
            record = {"broken": seq}
        yield record, stored
