"""When a certificate must be renewed, its alternative names, and the hours in which it is in use."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; every certificate stays as it is."""
    op.add_column("certs", sa.Column("renewed_at", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("certs", sa.Column("cadence", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("certs", sa.Column("san", sa.Text(), nullable=False, server_default=""))
    op.add_column("certs", sa.Column("schedule", sa.Text(), nullable=False, server_default=""))
