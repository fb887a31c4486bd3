"""How a database server is named, reached and shown."""

import pytest
import sqlalchemy as sa

from appliance.cms import dialect
from appliance.cms.database import Database
from appliance.cms.dialect import Login, check_url, engine_for, remember_login, shown
from appliance.config.secret import Secret
from appliance.errors import DatabaseLost


@pytest.fixture
def connected(monkeypatch):
    """What the driver is asked for."""
    seen = {}
    monkeypatch.setattr(dialect, "_logins", {})
    for name in ("PGHOST", "PGHOSTADDR", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)

    def connect(*_args, **more):
        import psycopg

        seen.clear()
        seen.update(more)
        raise psycopg.OperationalError("connection failed: no")

    monkeypatch.setattr("psycopg.connect", connect)
    monkeypatch.setattr("psycopg.Connection.connect", connect)
    return seen


def reach(where, login=None):
    with pytest.raises(DatabaseLost):
        Database(where, login).connect("writer")


@pytest.mark.parametrize(
    ("place", "is_here"),
    [
        ("cms@localhost/cms", True),
        ("cms@/cms", True),
        ("cms@/cms?host=/run/postgresql", True),
        ("cms@localhost/cms?hostaddr=127.0.0.1", True),
        ("cms@db.lab/cms", False),
        ("cms@localhost,db.lab/cms", False),
        ("cms@localhost/cms?host=db.lab", False),
        ("cms@localhost/cms?hostaddr=10.0.0.1", False),
        ("cms@/cms?hostaddr=10.0.0.1", False),
        ("cms@/cms?service=lab", False),
    ],
)
def test_a_server_that_may_be_elsewhere_has_to_prove_which_one_it_is(connected, place, is_here):
    url = f"postgresql+psycopg://{place}"
    reach(url)
    assert connected.get("sslmode") == (None if is_here else "verify-full")
    weak = f"{url}{'&' if '?' in url else '?'}sslmode=disable"
    assert bool(check_url(weak)) is not is_here


@pytest.mark.parametrize(
    ("name", "value", "is_here"),
    [("PGHOST", "db.lab", False), ("PGHOST", "/run/postgresql", True), ("PGHOSTADDR", "10.0.0.1", False), ("PGSERVICE", "lab", False)],
)  # fmt: skip
def test_so_has_one_that_the_environment_names(connected, monkeypatch, name, value, is_here):
    monkeypatch.setenv(name, value)
    reach("postgresql+psycopg://cms@/cms")
    assert connected.get("sslmode") == (None if is_here else "verify-full")


def test_whoever_has_only_the_url_uses_the_password_and_the_authorities_of_the_configuration(connected):
    url = "postgresql+psycopg://cms@db.lab/cms"
    remember_login(url, Login(Secret("geheim"), "/ca.pem"))
    reach(url)
    assert (connected["password"], connected["sslrootcert"]) == ("geheim", "/ca.pem")
    with pytest.raises(sa.exc.OperationalError):
        engine_for(url).connect()
    assert (connected["password"], connected["sslrootcert"]) == ("geheim", "/ca.pem")
    reach(url, Login(Secret("another")))
    assert connected["password"] == "another"


def test_what_is_no_parameter_of_a_place_is_not_shown():
    secret = "&".join(
        f"{name}=geheim" for name in ("passwrd", "PASSWORD", "sslpassword", "passfile", "options")
    )
    where = f"postgresql+psycopg://cms@db.lab/cms?sslmode=verify-full&{secret}"
    assert shown(where) == "postgresql+psycopg://cms@db.lab/cms?sslmode=verify-full"


def test_a_copy_to_a_server_that_need_not_prove_itself_is_a_warning(monkeypatch, capsys):
    from appliance.cms import commands, copying

    monkeypatch.setattr(copying, "copy_database", lambda *_args, **_more: copying.Copied(0, 0, "head"))
    for mode, warns in (("disable", True), ("verify-full", False)):
        commands._copy("certs.db", f"postgresql+psycopg://cms@db.lab/cms?sslmode={mode}", Login())
        assert ("sslmode=disable lets whoever is on the way" in capsys.readouterr().err) is warns
