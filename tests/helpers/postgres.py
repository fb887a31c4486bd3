"""A PostgreSQL of the tests' own: started from Debian's binaries, in a directory and on a port of its own.

Each process of the tests has one, made from a template that is initialised once. Each test has a database of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import pwd
import selectors
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from tests.helpers.ports import free_port

ACCOUNT = "postgres"
"""The account of Debian's package, because PostgreSQL does not run as root."""
PASSWORD = "correct horse"
"""Of the role ``pvacms``, which has to give it on a TCP port."""
HBA = """local all all trust
local replication all trust
host all pvacms 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
"""
FAST = ("fsync=off", "full_page_writes=off", "synchronous_commit=off")
SETTINGS = (
    "listen_addresses=127.0.0.1",
    "max_connections=100",
    "shared_buffers=16MB",
    "dynamic_shared_memory_type=mmap",
    "timezone=UTC",
    "logging_collector=off",
)


def binaries() -> Path:
    """The newest PostgreSQL of this machine."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    assert found, (
        "PostgreSQL is not installed: the tests of the certificate service need it (apt install postgresql)"
    )
    return found[-1]


def prefix(*, dies_with_us: bool = False) -> list[str]:
    """What runs a program as the account that PostgreSQL wants."""
    death = ["--pdeathsig=KILL"] if dies_with_us else []
    if os.geteuid() != 0:
        return ["setpriv", *death] if death else []
    return ["setpriv", f"--reuid={ACCOUNT}", f"--regid={ACCOUNT}", "--clear-groups", *death]


def owner() -> str:
    return ACCOUNT if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


def run_as_owner(*command: str | Path) -> None:
    done = subprocess.run(
        [*prefix(), *map(str, command)], check=False, cwd="/tmp", capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def template() -> Path:
    """An initialised data directory, made by whoever comes first."""
    version = binaries().parent.name
    base = Path(tempfile.gettempdir()) / f"spva-postgresql-{version}-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        base.mkdir(mode=0o755)
    done = base / "template"
    with (base / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            making = base / "making"
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir(mode=0o700)
            if os.geteuid() == 0:
                shutil.chown(making, ACCOUNT, ACCOUNT)
            run_as_owner(
                binaries() / "initdb", "--no-sync", "-A", "trust", "-U", "postgres", "-E", "UTF8",
                "--locale=C.UTF-8", "-D", making,
            )  # fmt: skip
            making.rename(done)
    return done


class Server:
    """One PostgreSQL. ``settings`` are further lines of its configuration, as ``name=value``."""

    def __init__(self, *settings: str, fast: bool = True) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="spva-pg-"))
        self.directory.chmod(0o755)
        self.settings = [*SETTINGS, *(FAST if fast else FAST[:2]), *settings]
        self.port = 0
        self.log: list[str] = []
        self._process: subprocess.Popen[str] | None = None
        self._numbers = itertools.count()
        data = self.directory / "data"
        subprocess.run(["cp", "-a", template(), data], check=True, timeout=60)
        (data / "pg_hba.conf").write_text(HBA)
        if os.geteuid() == 0:
            shutil.chown(self.directory, ACCOUNT, ACCOUNT)

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start it, on the port that it has had, and wait until it takes connections."""
        port = self.port or free_port()
        assert self._started(port), self.text
        if not self.port:
            self.port = port
            if not (self.data / "standby.signal").exists():
                self.sql(f"CREATE ROLE pvacms LOGIN CREATEDB PASSWORD '{PASSWORD}'")
        return self

    @property
    def text(self) -> str:
        return "".join(self.log)

    def _started(self, port: int) -> bool:
        self.log.clear()
        options = [f"-c{line}" for line in (*self.settings, f"unix_socket_directories={self.directory}")]
        self._process = subprocess.Popen(
            [*prefix(dies_with_us=True), binaries() / "postgres", "-D", self.data, f"-p{port}", *options],
            cwd=self.directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
        )
        pipe = self._process.stderr
        assert pipe is not None
        for line in pipe:
            self.log.append(line)
            if "database system is ready to accept" in line:  # a standby: read-only connections
                threading.Thread(target=self._read, args=(pipe,), daemon=True).start()
                return True
        pipe.close()
        self._process.wait(30)
        return False

    def _read(self, pipe: Any) -> None:
        with pipe:
            self.log.extend(pipe)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGTERM waits for clients, SIGINT ends their connections, SIGQUIT drops everything."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(how)
        self._ended()

    def kill(self) -> None:
        """End all of its processes at once, as a power cut does.

        Each of them has a process group of its own. The next start fails while one of them is left.
        """
        if self._process is not None and self._process.poll() is None:
            first = self._process.pid
            os.kill(first, signal.SIGSTOP)  # it begins no others meanwhile
            others = Path(f"/proc/{first}/task/{first}/children").read_text().split()
            with contextlib.ExitStack() as stack, selectors.DefaultSelector() as ends:
                for pid in others:
                    with contextlib.suppress(ProcessLookupError):
                        fd = os.pidfd_open(int(pid))
                        stack.callback(os.close, fd)
                        ends.register(fd, selectors.EVENT_READ)
                os.kill(first, signal.SIGKILL)
                for pid in others:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                while ends.get_map():
                    ended = ends.select(60)
                    assert ended, "a process of PostgreSQL does not end"
                    for key, _ in ended:
                        ends.unregister(key.fd)
        self._ended()

    def _ended(self) -> None:
        if self._process is not None:
            self._process.wait(60)
            self._process = None

    def close(self) -> None:
        if self.is_running:
            self.stop(signal.SIGQUIT)
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- databases -----------------------------------------------------------------------------------

    def connect(self, database: str = "postgres") -> Any:
        import psycopg

        return psycopg.connect(
            host=str(self.directory), port=self.port, user="postgres", dbname=database, autocommit=True
        )

    def standby(self, *settings: str) -> Server:
        """A server that follows this one, by a stream. It has not been started."""
        made = Server(*settings, fast=False)
        shutil.rmtree(made.data)
        where = f"host={self.directory} port={self.port} user=postgres"
        run_as_owner(
            binaries() / "pg_basebackup", "-d", where, "-D", made.data, "-R", "-X", "stream", "-c", "fast"
        )
        return made

    def promote(self) -> None:
        """Make a standby a primary."""
        self.sql("SELECT pg_promote(true, 60)")

    def sql(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement as the superuser."""
        with contextlib.closing(self.connect(database)) as connection:
            done = connection.execute(statement)
            return done.fetchall() if done.description else []

    def empty(self) -> str:
        """The name of a new database without any table."""
        name = f"empty_{next(self._numbers)}"
        self.sql(f"CREATE DATABASE {name} OWNER pvacms")
        return name

    def new(self) -> str:
        """The name of a new database that has the newest schema: another one each time."""
        if not self.sql("SELECT 1 FROM pg_database WHERE datname = 'newest'"):
            from appliance.cms.store import Store

            self.sql("CREATE DATABASE newest OWNER pvacms")
            store = Store(self.url("newest", user="pvacms"), "")
            store.open()
            store.close()
        name = f"test_{next(self._numbers)}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE newest OWNER pvacms")
        self.sql(f"UPDATE meta SET value = '{uuid.uuid4()}' WHERE key = 'database_id'", name)
        return name

    def drop(self, name: str) -> None:
        self.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def url(self, database: str, *, user: str = "postgres", host: str = "", port: int = 0) -> str:
        """The URL of a database: by the socket of this server, or by TCP if there is a host."""
        where = host or str(self.directory)
        return f"postgresql+psycopg://{user}@/{database}?host={where}&port={port or self.port}"


class Engine:
    """Gives each directory that a test uses a database: a file in it, or one of a server."""

    def __init__(self, name: str, server: Server | None = None) -> None:
        self.name = name
        self.server = server
        self._made: dict[str, str] = {}

    def db(self, directory: Path | str) -> str:
        """The database of a directory, as the setting ``db`` names it: always the same for the same directory."""
        if self.server is None:
            return str(Path(directory) / "certs.db")
        name = self._made.get(str(directory))
        if name is None:
            name = self._made[str(directory)] = self.server.new()
        return self.server.url(name)

    def close(self) -> None:
        for name in self._made.values():
            assert self.server is not None
            if self.server.is_running:
                self.server.drop(name)
        self._made.clear()


class _Rows:
    """A connection of psycopg that takes the statements that tests have for SQLite."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def execute(self, statement: str, values: Any = ()) -> Any:
        return self._connection.execute(statement.replace("?", "%s").encode(), values)


@contextlib.contextmanager
def raw(where: str) -> Iterator[Any]:
    """A connection to a database beside the service, with ``execute``; committed at the end."""
    if "://" not in where:
        with contextlib.closing(sqlite3.connect(where)) as connection, connection:
            yield connection
        return
    import psycopg

    with psycopg.connect(where.replace("+psycopg", "")) as connection:
        yield _Rows(connection)
