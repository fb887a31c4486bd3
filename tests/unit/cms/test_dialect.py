"""How a database server is named, reached and shown."""

import socket
import struct
import threading

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


def asks_for_the_password():
    """A server that says that it wants the password as it is, and gives what the client then sends."""
    listening = socket.create_server(("127.0.0.1", 0))
    given = []

    def serve():
        while True:
            try:
                peer, _ = listening.accept()
            except OSError:
                return
            with peer, peer.makefile("rb") as stream:
                length, code = struct.unpack("!ii", stream.read(8))
                while code in (80877103, 80877104):  # TLS, GSSAPI
                    peer.sendall(b"N")
                    length, code = struct.unpack("!ii", stream.read(8))
                stream.read(length - 8)
                peer.sendall(b"R" + struct.pack("!ii", 8, 3))
                given.append(stream.read())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return listening, thread, given


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_password_is_not_given_to_whoever_has_opened_the_port_of_a_server_on_this_host(host):
    listening, thread, given = asks_for_the_password()
    port = listening.getsockname()[1]
    with pytest.raises(DatabaseLost, match=r"given by SCRAM only: have pg_hba.conf ask for scram-sha-256"):
        Database(
            f"postgresql+psycopg://cms@{host}:{port}/cms?hostaddr=127.0.0.1", Login(Secret("geheim"))
        ).connect("writer")
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join(60)
    assert given == [b""]


@pytest.mark.parametrize(
    ("place", "by_scram"),
    [
        ("cms@localhost/cms", True),
        ("cms@db.lab/cms", False),
        ("cms@db.lab/cms?sslmode=require", True),
        ("cms@/cms?host=/run/postgresql", False),
        ("cms@/cms", False),
        ("cms@localhost/cms?sslmode=verify-full", False),
        ("cms@localhost/cms?require_auth=md5", False),
    ],
)
def test_without_proof_of_the_server_a_password_is_given_by_scram_unless_the_url_says_otherwise(
    connected, place, by_scram
):
    reach(f"postgresql+psycopg://{place}", Login(Secret("geheim")))
    assert (connected.get("require_auth") == "scram-sha-256") is by_scram
    reach(f"postgresql+psycopg://{place}")
    assert connected.get("require_auth") in (None, "md5"), "no password, nothing to hide"
