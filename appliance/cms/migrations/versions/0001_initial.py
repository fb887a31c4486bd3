"""The first version of the database."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    big = sa.BigInteger()
    key = big.with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "certs",
        sa.Column("serial", key, primary_key=True, autoincrement=False),
        sa.Column("issuer", sa.String(8), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("subject", "cn", "o", "ou", "c")),
        sa.Column("usage", sa.String(8), nullable=False),
        sa.Column("method", sa.String(16), nullable=False),
        sa.Column("identity", sa.Text(), nullable=False),
        sa.Column("skid", sa.String(40), nullable=False),
        *(sa.Column(name, big, nullable=False) for name in ("not_before", "not_after", "renew_by")),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("state_date", big, nullable=False),
        sa.Column("approved", sa.Boolean(create_constraint=False), nullable=False),
        sa.Column("delivered", sa.Integer(), nullable=False),
        sa.Column("created", big, nullable=False),
    )
    op.create_index("certs_subject", "certs", ["subject"])
    op.create_index("certs_state", "certs", ["state", "not_after"])
    op.create_table(
        "audit",
        sa.Column("seq", key, primary_key=True, autoincrement=False),
        sa.Column("at", big, nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("serial", sa.String(20), nullable=False),
        sa.Column("record", sa.Text(), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
    )
    op.create_index("audit_serial", "audit", ["serial"])
    op.create_table(
        "replay",
        sa.Column("issuer", sa.String(512), primary_key=True),
        sa.Column("token", sa.String(64), primary_key=True),
        sa.Column("until", big, nullable=False),
    )
    op.create_index("replay_until", "replay", ["until"])
    op.create_table(
        "meta",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("value", sa.Text(), nullable=False),
    )
