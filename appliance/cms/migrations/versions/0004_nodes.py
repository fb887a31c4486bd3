"""Several services on one database: who recorded what, when the clock acts next, and which authorities there are."""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add tables, columns with defaults, and indexes, and drop some of these; every certificate stays as it is."""
    for name in ("node", "came_from"):
        op.add_column("certs", sa.Column(name, sa.String(64), nullable=False, server_default=""))
    op.add_column("certs", sa.Column("next_at", sa.BigInteger(), nullable=True))
    for name, length in (("node", 64), ("key_id", 64), ("usage", 8)):
        op.add_column("replay", sa.Column(name, sa.String(length), nullable=False, server_default=""))
    op.add_column("replay", sa.Column("used_at", sa.BigInteger(), nullable=False, server_default="0"))
    # A schedule's next change is for the service to compute: 0.
    op.execute(
        "UPDATE certs SET next_at = CASE WHEN schedule <> '' THEN 0 WHEN state = 'PENDING' THEN not_before "
        "WHEN state = 'VALID' AND renew_by > 0 AND renew_by < not_after THEN renew_by ELSE not_after END "
        "WHERE state NOT IN ('REVOKED', 'EXPIRED')"
    )
    op.create_index("certs_listed", "certs", ["issuer", "state", "created", "serial"])
    op.create_index("certs_ends", "certs", ["issuer", "not_after", "serial"])
    op.create_index("certs_name", "certs", ["issuer", "cn"], postgresql_ops={"cn": 'COLLATE "C"'})
    # Each index is a page to write for every certificate: one is enough for keys, and no question needs `certs_state` any more.
    for name in ("certs_state", "certs_skid", "certs_key"):
        op.drop_index(name, "certs")
    op.create_index("certs_key", "certs", ["key_id", "skid"])
    for name, column, where in (
        ("certs_due", "next_at", "next_at IS NOT NULL"),
        ("certs_undelivered", "node", "delivered = 0"),
        ("certs_barred", "key_id", "barred"),
    ):
        condition = sa.text(where)
        op.create_index(name, "certs", [column], sqlite_where=condition, postgresql_where=condition)
    op.create_table(
        "nodes",
        sa.Column("node", sa.String(64), primary_key=True),
        sa.Column("number", sa.Integer(), nullable=False, unique=True),
        sa.Column("instance", sa.String(36), nullable=False),
        sa.Column("node_id", sa.String(8), nullable=False),
        sa.Column("release", sa.String(32), nullable=False),
        sa.Column("schema", sa.String(8), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("last_commit", sa.String(36), nullable=False),
    )
    op.create_table(
        "authorities",
        sa.Column("issuer", sa.String(8), primary_key=True),
        sa.Column("chain", sa.Text(), nullable=False),
        sa.Column("crossed", sa.Text(), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("ends", sa.BigInteger(), nullable=True),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute("CREATE UNLOGGED TABLE limits (key VARCHAR(80) PRIMARY KEY, tat BIGINT NOT NULL)")
    facts = sa.table("meta", sa.column("key"), sa.column("value"))
    op.bulk_insert(
        facts,
        [
            {"key": "database_id", "value": str(uuid.uuid4())},
            {"key": "schema_oldest", "value": revision},
        ],
    )
