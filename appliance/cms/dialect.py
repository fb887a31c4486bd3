"""How a database is opened: a file of SQLite, or a database server (PostgreSQL), and what its errors mean."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from appliance.config.secret import Secret
from appliance.errors import ConfigurationError, DatabaseLost

__all__ = [
    "Login",
    "Role",
    "check_url",
    "engine_for",
    "is_passing",
    "is_sqlite",
    "kind_of",
    "login_of",
    "reason",
    "refuse_log_of_another",
    "remember_login",
    "shown",
]

Role = Literal["writer", "reader", "list", "feed", "limits", "nodes", "command"]
"""What a connection is for. Each has its own time limits."""
_STATEMENT_MS: Final[dict[str, int]] = {"reader": 2000, "list": 5000, "command": 0}
"""Milliseconds that one statement may take; 0: any time."""
_LIMIT_MS: Final = 5000
_LOST: Final = frozenset(("57P01", "57P02", "57P03", "57P05", "25P03", "25006", "53300"))
"""SQLSTATE of what ends a connection, or calls for another one: the server stops, or it takes no writes any more."""
_BUSY: Final = frozenset(("55P03", "57014", "40001", "40P01"))
"""SQLSTATE of a lock that was not given in time, and of what PostgreSQL asks to do again."""
_PASSES: Final = (
    "Connection refused", "No such file or directory", "timeout expired", "timed out", "No route to host",
    "Network is unreachable", "could not translate host name", "name resolution", "starting up", "shutting down",
    "not yet accepting", "too many clients", "remaining connection slots", "closed the connection", "Connection reset",
)  # fmt: skip
"""What libpq says of a server that may be there a moment later."""
_KNOWS_METHODS: Final = 160000
"""Version of libpq that can be told by which methods a server may ask for the password."""
_WEAK: Final = ("disable", "allow", "prefer", "require", "verify-ca")
_SHOWN: Final = frozenset(
    ("host", "hostaddr", "port", "dbname", "service", "sslmode", "target_session_attrs")
)
"""Parameters of a URL that messages may show."""
_ADVICE: Final = (
    (
        "authentication method requirement",
        (
            "without TLS (sslmode=verify-full) a password is given by SCRAM only: have pg_hba.conf ask for scram-sha-256, use TLS or "
            "the server's socket, or name other methods with require_auth in db"
        ),
    ),
    ("no password supplied", "set db_password"),
    ("password authentication failed", "correct db_password, or the role's password in the server"),
    ("session is read-only", "it is read-only (a standby?): name the primary, or all hosts of the database"),
    ("certificate verify failed", "name the authority of the server's certificate with db_tls_ca"),
    ("does not match host name", "name the server as its certificate does"),
    ("no pg_hba.conf entry", "permit this host and role in the server's pg_hba.conf"),
    ("does not exist", "create it, as the how-to says"),
)
_ADVICE_OF_USE: Final = (
    ("permission denied for schema", "make the role the owner of the database, as the how-to says"),
    ("disk image is malformed", "the file is damaged: restore a backup"),
)
"""The same for what comes later than the connection."""
_WAL: Final = b"\x02\x02"
"""How a file of SQLite says, at octet 18, that a write-ahead log may belong to it (its file format, 1.3.3)."""


class Login(NamedTuple):
    """What a database server needs beside the URL."""

    password: Secret = Secret()
    tls_ca: str = ""
    """File of the authorities that may have signed the server's certificate; empty: those of the system."""
    node: str = ""
    """Name of this node, which the server shows to its administrator."""


_logins: Final[dict[str, Login]] = {}


def remember_login(where: str, login: Login) -> None:
    """Have `engine_for` use what the configuration says about a server, so that commands need only the URL."""
    _logins[where] = login


def login_of(where: str) -> Login:
    """Return what `remember_login` was told of a server."""
    return _logins.get(where, Login())


def is_sqlite(where: str) -> bool:
    """Whether ``where`` is a file and not the URL of a database server."""
    return "://" not in where


def shown(where: str) -> str:
    """Return the name of a database for messages."""
    if is_sqlite(where):
        return where
    url = _url(where)
    # What is misspelt may be a password.
    return url.difference_update_query([name for name in url.query if name not in _SHOWN]).render_as_string()


def _url(where: str) -> sa.URL:
    try:
        url = sa.make_url(where)
    except (sa.exc.ArgumentError, ValueError):
        raise ConfigurationError(
            "the URL of the database server cannot be read; write postgresql+psycopg://ROLE@HOST/DATABASE",
            key="db",
        ) from None
    if url.drivername not in ("postgresql", "postgresql+psycopg"):
        raise ConfigurationError(
            f"{url.drivername!r} is not supported: name a file (SQLite), or postgresql+psycopg://ROLE@HOST/DATABASE",
            key="db",
        )
    if url.password is not None or "password" in url.query:
        raise ConfigurationError(
            "the URL of the database contains a password, which others could read: take it out and set db_password: "
            "${credential:db-password}",
            key="db",
        )
    return url.set(drivername="postgresql+psycopg")


def _hosts(url: sa.URL) -> list[str]:
    names = [url.host or ""]
    for parameter in ("host", "hostaddr"):
        said = url.query.get(parameter, ())
        names += (said,) if isinstance(said, str) else said
    return [
        part.rpartition(":")[0] or part if part.count(":") == 1 else part
        for name in names
        for part in name.split(",")
        if part
    ]


def _is_local(url: sa.URL) -> bool:
    """Whether the server is on this host. One that a file of libpq or the environment names may be anywhere."""
    if "service" in url.query or any(map(os.environ.get, ("PGHOSTADDR", "PGSERVICE"))):
        return False
    return all(map(_is_here, _hosts(url) or filter(None, os.environ.get("PGHOST", "").split(","))))


def _is_here(host: str) -> bool:
    if host.startswith(("/", "@")) or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_url(where: str) -> list[str]:
    """Check how a database server is named.

    Returns:
        A sentence for each thing that makes the connection less secure.

    Raises:
        ConfigurationError: The setting cannot be used.
    """
    url = _url(where)
    mode = url.query.get("sslmode", "")
    if mode in _WEAK and not _is_local(url):
        return [
            f"db: sslmode={mode} lets whoever is on the way read and change what the database answers; leave sslmode out"
        ]
    return []


def engine_for(
    where: str, *, read_only: bool = False, role: Role = "command", login: Login | None = None
) -> sa.Engine:
    """Return an engine for a file (SQLite) or a URL (such as ``postgresql+psycopg://``)."""
    if not is_sqlite(where):
        return _server_engine(
            where, read_only=read_only, role=role, login=login_of(where) if login is None else login
        )
    mode = "?mode=ro" if read_only else ""
    # As a URI, because the path may have any characters.
    from urllib.parse import quote

    engine = sa.create_engine(
        f"sqlite:///file:{quote(os.path.abspath(where))}{mode}{'&' if mode else '?'}uri=true",  # noqa: PTH100
        poolclass=NullPool,
        connect_args={
            "check_same_thread": False,
            "isolation_level": None,
            "timeout": 10.0,
            "cached_statements": 256,
        },
    )

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        if not read_only:
            cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA cache_size=-32768")
        # What a statement needs to take itself back, and what it sorts, stays in memory: otherwise each writes a file for it.
        cursor.execute("PRAGMA temp_store=MEMORY")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def refuse_log_of_another(where: str) -> None:
    """Refuse a file beside which another database's write-ahead log was left: SQLite would write that into it, and so destroy it.

    A backup that is put in the place of a database says that it has no such log. An empty file gets none: SQLite removes it.

    Call it before this process has a connection to the file. To open and close it beside one takes SQLite's locks away from that
    (POSIX locks are the process's), and another process that ends would then remove the log that is in use.

    Raises:
        ConfigurationError: There is such a log.
    """
    log = where + "-wal"
    try:
        with open(where, "rb") as file:  # noqa: PTH123 - text in
            begin = file.read(20)
        size = os.stat(log).st_size  # noqa: PTH116
    except OSError:
        return
    if size and len(begin) == 20 and begin[18:] != _WAL:
        raise ConfigurationError(
            f"{log} was left by another database, which was here before, and would destroy this one: move it away, and {where}-shm",
            file=where,
        )


def _server_engine(where: str, *, read_only: bool, role: Role, login: Login) -> sa.Engine:
    url = _url(where)
    statement_ms = _STATEMENT_MS.get(role, _LIMIT_MS)
    settings = {
        "statement_timeout": statement_ms,
        "lock_timeout": _LIMIT_MS,
        # It gives the lock of a node that is frozen, or cut off, to the others.
        "idle_in_transaction_session_timeout": statement_ms and _LIMIT_MS,
        "timezone": "UTC",
        "default_transaction_isolation": "read committed",
        # The server, too, notices a host that is gone: its locks are the other nodes', and its name is its own after a reboot.
        "tcp_keepalives_idle": 5,
        "tcp_keepalives_interval": 2,
        "tcp_keepalives_count": 3,
        "default_transaction_read_only": "on" if read_only else "off",
    }
    arguments: dict[str, Any] = {
        "connect_timeout": 2,
        "application_name": f"pvacms/{login.node}" if login.node else "pvacms",
        "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 5000,
    }  # fmt: skip
    # A standby may not know yet what was committed, so it is not asked either.
    arguments["target_session_attrs"] = "primary" if read_only else "read-write"
    if not _is_local(url):
        arguments["sslmode"] = "verify-full"
    mode = url.query.get("sslmode", arguments.get("sslmode"))
    if login.password and mode != "verify-full" and not _is_socket(url):
        # Any user of this host may open the port while the server is down, and ask for the password as it is. By SCRAM nobody
        # learns it, and the server proves that it has it too.
        arguments |= _by_scram()
    if login.tls_ca:
        arguments["sslrootcert"] = login.tls_ca
    elif arguments.get("sslmode") or str(url.query.get("sslmode", "")).startswith("verify"):
        arguments["sslrootcert"] = _system_authorities()
    arguments = {name: value for name, value in arguments.items() if name not in url.query}
    if login.password:
        arguments["password"] = login.password.reveal()
    # Not that of the server or of this process' environment, in which some names could not be written.
    arguments["client_encoding"] = "utf8"
    engine = sa.create_engine(url, poolclass=NullPool, connect_args=arguments, hide_parameters=True)

    own = str(url.query.get("options", ""))
    words = "; ".join(f"SET {name} = '{value}'" for name, value in settings.items() if name not in own)

    # Not as a parameter of the start, which a pooler may drop without a word. One journey for all of them.
    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, _: object) -> None:
        connection.set_autocommit(True)
        connection.execute(words)
        connection.set_autocommit(False)
        encoding = connection.info.parameter_status("server_encoding")
        if encoding not in (None, "UTF8"):
            raise DatabaseLost(
                f"the database {shown(where)} cannot be used: its encoding is {encoding}, in which some names cannot be written; make "
                "one with TEMPLATE template0 ENCODING 'UTF8', as the how-to says"
            )

    return engine


def _is_socket(url: sa.URL) -> bool:
    """Whether the server is reached by a socket in the file system, whose directory is its own."""
    names = _hosts(url) or [name for name in os.environ.get("PGHOST", "").split(",") if name]
    return _is_local(url) and all(name.startswith(("/", "@")) for name in names)


def _by_scram() -> dict[str, str]:
    """Return what has a password given by SCRAM only: nothing before libpq 16, which does not know it."""
    import psycopg

    return {"require_auth": "scram-sha-256"} if psycopg.pq.version() >= _KNOWS_METHODS else {}


def _system_authorities() -> str:
    import ssl

    paths = (ssl.get_default_verify_paths().cafile, "/etc/ssl/certs/ca-certificates.crt")
    return next((path for path in paths if path and os.path.isfile(path)), "system")  # noqa: PTH113


def kind_of(error: BaseException) -> Literal["lost", "busy", "other"]:
    """Say what an error of a database server is about.

    Returns:
        ``lost``: the connection or the server; ``busy``: the same may succeed a moment later; ``other``: what was asked.
    """
    if not isinstance(error, sa.exc.DBAPIError) or type(error.orig).__module__.startswith("sqlite3"):
        return "other"
    state = getattr(error.orig, "sqlstate", None)
    if state is None:
        is_lost = isinstance(error, (sa.exc.OperationalError, sa.exc.InterfaceError))
        return "lost" if is_lost or error.connection_invalidated else "other"
    if state in _LOST or state[:2] == "08":
        return "lost"
    return "busy" if state in _BUSY else "other"


def is_passing(error: BaseException) -> bool:
    """Whether a connection that failed may succeed a moment later."""
    text = str(getattr(error, "orig", None) or error)
    return any(part in text for part in _PASSES)


def reason(error: BaseException) -> str:
    """Return why, in the database's words and with advice where there is any."""
    original = getattr(error, "orig", None)
    lines: Sequence[str] = str(original or error).splitlines() or [type(error).__name__]
    if kind_of(error) != "lost":
        found = [what for sign, what in _ADVICE_OF_USE if sign in lines[0]]
        return "; ".join((lines[0], *found[:1]))
    text = re.sub(r"\s+", " ", " ".join(lines)).strip()
    text = re.sub(r"^connection failed: |\(Background on this error.*", "", text)[:400]
    advice = [what for sign, what in _ADVICE if sign in text]
    return "; ".join((text, *advice[:1]))
