"""What a revision of the next release may do: add a column with a default, a table, an index."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand the schema."""
    op.add_column("certs", sa.Column("colour", sa.String(16), nullable=False, server_default="grey"))
    op.create_table("colours", sa.Column("colour", sa.String(16), primary_key=True))
    op.create_index("certs_colour", "certs", ["colour"])
