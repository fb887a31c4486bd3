"""Give the account spva its password and its database; prints what was done, nothing if nothing was to be done.

The password comes on standard input. Only its SCRAM verifier goes to the server, so it is in no log of statements.
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


def main() -> int:
    """Do what is missing; gives the exit status."""
    port, password = sys.argv[1], sys.stdin.read()
    found = psql(port, "SELECT coalesce(rolpassword, '-') FROM pg_authid WHERE rolname = 'spva'")
    parts = VERIFIER.fullmatch(found)
    if parts is None or verifier(password, base64.b64decode(parts[2]), int(parts[1])) != found:
        verb = "ALTER" if found else "CREATE"
        wanted = verifier(password, os.urandom(16), ROUNDS)
        psql(port, f"{verb} ROLE spva LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD '{wanted}'")
        print(f"{verb} ROLE spva")
    if not psql(port, "SELECT 1 FROM pg_database WHERE datname = 'spva'"):
        psql(port, "CREATE DATABASE spva OWNER spva TEMPLATE template0 ENCODING 'UTF8'")
        psql(port, "REVOKE ALL ON DATABASE spva FROM PUBLIC")
        print("CREATE DATABASE spva")
    return 0


if __name__ == "__main__":
    sys.exit(main())
