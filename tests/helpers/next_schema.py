"""The release after this one, as far as its database goes: one more revision, which expands the schema.

``python -m tests.helpers.next_schema`` is `pvacms` of that release.
"""

from __future__ import annotations

import sys
from pathlib import Path

import sqlalchemy as sa

from appliance.cms import schema
from tests.helpers.postgres import raw

VERSION = "0005"
VERSIONS = Path(__file__).with_name("next_versions")


def become_next() -> None:
    """Make this process one of the next release."""
    schema.HEAD = VERSION  # type: ignore[misc]
    schema.certs.append_column(sa.Column("colour", sa.String(16), nullable=False, server_default="grey"))
    schema.VERSIONS.append(str(VERSIONS))


def contract(where: str) -> None:
    """Do what the release after that does: what it drops, programs of before need."""
    with raw(where) as db:
        db.execute("UPDATE meta SET value = ? WHERE key = 'schema_oldest'", (VERSION,))


if __name__ == "__main__":
    become_next()
    from appliance.cli.pvacms import main

    sys.exit(main())
