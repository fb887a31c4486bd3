"""A database of the first version is brought up to date, with what was revoked in it."""

from pathlib import Path

import sqlalchemy as sa

from appliance.cms import schema
from appliance.cms.store import Store, engine_for

ISSUER = "01234567"


def first_version(path):
    """A database as version 0.1.0 wrote it."""
    from alembic import command
    from alembic.config import Config

    engine = engine_for(str(path))
    with engine.connect() as connection, connection.begin():
        config = Config()
        config.set_main_option("script_location", str(Path(schema.__file__).with_name("migrations")))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for serial, action, by in (
            (1, "revoke", "x509"),
            (2, "deny", "x509"),
            (3, "revoke", "service"),
            (4, "create", "ca"),
        ):
            state = "VALID" if action == "create" else "REVOKED"
            connection.execute(
                sa.text(
                    "INSERT INTO certs VALUES (:s, :i, 'n', 'n', '', '', '', 'client', 'std', '', :k, 0, 10, 0, :t, 0, false, 1, 0)"
                ),
                {"s": serial, "i": ISSUER, "k": f"{serial:040d}", "t": state},
            )
            record = f'{{"action":"{action}","method":"{by}","serial":"{serial}"}}'
            connection.execute(
                sa.text("INSERT INTO audit VALUES (:q, 0, :a, :s, :r, '')"),
                {"q": serial, "a": action, "s": str(serial), "r": record},
            )
    engine.dispose()


def test_keys_that_somebody_has_revoked_are_barred_and_others_are_not(tmp_path):
    first_version(tmp_path / "certs.db")
    store = Store(str(tmp_path / "certs.db"), ISSUER)
    store.open()
    try:
        assert not store.created
        for serial in (1, 2, 3, 4):
            (use,) = store.run(lambda transaction, s=serial: transaction.of_key("x" * 64, f"{s:040d}"))
            assert use.barred is (serial == 1), serial
        record = store.run(lambda transaction: transaction.get(4))
        assert (record.no_status, record.identity, record.skid) == (None, "", f"{4:040d}")
    finally:
        store.close()
    store = Store(str(tmp_path / "certs.db"), ISSUER)
    store.open()
    store.close()
