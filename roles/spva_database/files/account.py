"""Give the account spva its password and its database, and the standbys theirs; prints what was done, nothing if nothing was to be done.

``account.py PORT SLOT...``, with a slot for each standby. The passwords come on standard input, one a line: of the nodes, and of the standbys
if there are any. Only their SCRAM verifiers go to the server, so they are in no log of statements.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import subprocess
import sys

ROUNDS = 4096
VERIFIER = re.compile(r"SCRAM-SHA-256\$(\d+):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)")


def psql(port: str, statement: str) -> str:
    """Run one statement as the system's own account and return what it selects."""
    done = subprocess.run(  # noqa: S603
        ["/usr/bin/psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=terse", "-p", port, "-d", "postgres"],
        input=statement, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"account: {done.stderr.strip()}")
    return done.stdout.strip()


def verifier(password: str, salt: bytes, rounds: int) -> str:
    """Return what the server stores for a password (RFC 5803)."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, rounds)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    text = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${rounds}:{text[0]}${text[1]}:{text[2]}"


def give(port: str, account: str, rights: str, password: str) -> None:
    """Make an account, or give it another password."""
    said = psql(port, "SELECT rolname, coalesce(rolpassword, '-') FROM pg_authid WHERE rolname ~ '^spva'")
    found = dict(line.split("|") for line in said.splitlines()).get(account, "")
    parts = VERIFIER.fullmatch(found)
    if parts is None or verifier(password, base64.b64decode(parts[2]), int(parts[1])) != found:
        verb = "ALTER" if found else "CREATE"
        wanted = verifier(password, os.urandom(16), ROUNDS)
        psql(
            port,
            f"{verb} ROLE {account} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE {rights} PASSWORD '{wanted}'",
        )
        print(f"{verb} ROLE {account}")


def give_slots(port: str, wanted: list[str]) -> None:
    """Make a slot for each standby. One that kept too little is made anew, and one that nobody has is dropped."""
    said = psql(
        port,
        "SELECT slot_name, wal_status = 'lost', active FROM pg_replication_slots WHERE slot_name ~ '^spva_'",
    )
    there = [line.split("|") for line in said.splitlines()]
    useless = [name for name, lost, active in there if active == "f" and (lost == "t" or name not in wanted)]
    for name in useless:
        psql(port, f"SELECT pg_drop_replication_slot('{name}')")
        print(f"DROP SLOT {name}")
    kept = [name for name, *_ in there if name not in useless]
    for name in wanted:
        if name not in kept:
            psql(port, f"SELECT pg_create_physical_replication_slot('{name}', true)")
            print(f"CREATE SLOT {name}")


def main() -> int:
    """Do what is missing; gives the exit status."""
    port, *slots = sys.argv[1:]
    password, *more = sys.stdin.read().splitlines()
    give(port, "spva", "NOREPLICATION", password)
    if not psql(port, "SELECT 1 FROM pg_database WHERE datname = 'spva'"):
        psql(port, "CREATE DATABASE spva OWNER spva TEMPLATE template0 ENCODING 'UTF8'")
        psql(port, "REVOKE ALL ON DATABASE spva FROM PUBLIC")
        print("CREATE DATABASE spva")
    if more and more[0]:
        give(port, "spva_replication", "REPLICATION", more[0])
    give_slots(port, slots)
    return 0


if __name__ == "__main__":
    sys.exit(main())
