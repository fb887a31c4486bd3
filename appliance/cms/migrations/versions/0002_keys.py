"""Which key a certificate is for, whether that key may be certified again, and whether the status can be followed."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; keys of certificates that somebody has revoked are barred from now on."""
    no = sa.Boolean(create_constraint=False)
    op.add_column("certs", sa.Column("key_id", sa.String(64), nullable=False, server_default=""))
    op.add_column("certs", sa.Column("barred", no, nullable=False, server_default=sa.false()))
    op.add_column("certs", sa.Column("no_status", no, nullable=True))
    op.create_index("certs_skid", "certs", ["skid"])
    op.create_index("certs_key", "certs", ["key_id"])
    connection = op.get_bind()
    # A denial, and what the service itself withdrew, says nothing against a key.
    found = connection.execute(
        sa.text("SELECT serial, record FROM audit WHERE action = 'revoke' AND serial <> ''")
    )
    serials = [
        {"number": int(serial)}
        for serial, record in found
        if '"method":"service"' not in record or "before the database was restored" in record
    ]
    if serials:
        connection.execute(sa.text("UPDATE certs SET barred = true WHERE serial = :number"), serials)
