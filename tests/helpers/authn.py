"""A site for the authenticators: the certificate service and the issuer as processes, accounts with homes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from appliance.certs.keychain import Keychain, dump_keychain, load_keychain, make_keychain
from appliance.certs.profiles import CertificateAuthority, build_certificate, generate_key, subject_name
from appliance.certs.signer import KeySigner
from tests.helpers.cms import Process
from tests.helpers.issuer_process import COMMAND as ISSUER
from tests.helpers.issuer_process import environment as issuer_environment
from tests.helpers.ports import free_port
from tests.helpers.recording_proxy import RecordingProxy
from tests.helpers.tools import ROOT, Done

INSIDE = "127.0.0.2"
"""Where the certificate service listens; everybody reaches it through recording relays on 127.0.0.1."""


class Account:
    """One user of one host."""

    def __init__(self, site: Site, home: Path, **variables: str) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.site = site
        self.home = home
        self.variables = variables

    @property
    def config(self) -> Path:
        return self.home / "config" / "pva" / "1.5"

    def environment(self, **more: str) -> dict[str, str]:
        kept = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("EPICS_", "PVXS_", "XDG_", "LC_", "LANG"))
        }
        return {
            **kept,
            "PYTHONPATH": str(ROOT),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "XDG_DATA_HOME": str(self.home / "data"),
            "EPICS_PVA_AUTO_ADDR_LIST": "NO",
            "EPICS_PVA_ADDR_LIST": "",
            "EPICS_PVA_NAME_SERVERS": f"127.0.0.1:{self.site.tcp.port}",
            **self.variables,
            **more,
        }

    def run(self, tool: str, *arguments: object, stdin: str = "", umask: int = -1, **variables: str) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", f"appliance.cli.{tool}", *map(str, arguments)],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=self.environment(**variables),
            cwd="/",
            umask=umask,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    def token_file(self, sub: str, name: str = "token_file", **query: Any) -> Path:
        path = self.home / name
        path.touch(mode=0o600)
        path.write_text(self.site.token(sub, **query) + "\n")
        return path

    def keychain(self, name: str = "client.p12") -> Keychain:
        return load_keychain((self.config / name).read_bytes())

    def place(self, keychain: Keychain, name: str = "client.p12") -> Path:
        """Put a keychain where the tools look for it."""
        self.config.mkdir(parents=True, exist_ok=True)
        path = self.config / name
        path.touch(mode=0o600)
        path.write_bytes(dump_keychain(keychain))
        return path


class Port:
    """A relay to one port of the certificate service."""

    def __init__(self, proxy: RecordingProxy, port: int) -> None:
        self.proxy = proxy
        self.port = port


class Site:
    def __init__(self, directory: Path, cms: Process, issuer_url: str, tcp: Port, tls: Port) -> None:
        self.directory = directory
        self.cms = cms
        self.issuer_url = issuer_url
        self.tcp = tcp
        self.tls = tls
        self._count = 0

    def account(self, **variables: str) -> Account:
        """An account that nobody has used yet."""
        self._count += 1
        return Account(self, self.directory / f"home{self._count}", **variables)

    def administrator(self) -> Account:
        return self.account(EPICS_PVA_TLS_KEYCHAIN=str(self.cms.config_dir / "admin.p12"))

    def token(self, sub: str, **query: Any) -> str:
        query = {"sub": sub, "password": "secret", **query}
        with urllib.request.urlopen(
            f"{self.issuer_url}/default/token?{urllib.parse.urlencode(query)}"
        ) as answer:
            text: str = answer.read().decode()
        return text

    @property
    def authority(self) -> CertificateAuthority:
        """The certificate authority's key, for certificates with a past."""
        found = load_keychain((self.cms.config_dir / "cert_auth.p12").read_bytes())
        return CertificateAuthority(KeySigner(found.key), found.certificate)

    def issue(
        self,
        name: str = "old",
        usage: str = "client",
        *,
        begun: timedelta = timedelta(days=1),
        left: timedelta = timedelta(days=1),
        status: bool = False,
    ) -> Keychain:
        """A keychain of this site's CA with whatever dates."""
        ca = self.authority
        now = datetime.now(UTC).replace(microsecond=0)
        key = generate_key("ec-p256")
        serial = int.from_bytes(os.urandom(8)) >> 1 | 1
        certificate = build_certificate(
            ca,
            subject=subject_name(name, organization="lab"),
            public_key=key.public_key(),
            usage=usage,
            not_before=now - begun,
            not_after=now + left,
            serial=serial,
            status_pv=f"CERT:STATUS:{self.cms.issuer}:{serial:020d}" if status else None,
        )
        return make_keychain(key, [certificate, ca.certificate])

    def audit(self) -> str:
        import sqlite3

        with contextlib.closing(sqlite3.connect(self.cms.db)) as connection:
            return json.dumps(connection.execute("SELECT * FROM audit").fetchall(), default=str)


@contextlib.contextmanager
def running_site(directory: Path, *arguments: str, **variables: str) -> Iterator[Site]:
    """The seed's settings verbatim, but for the port of the issuer."""
    port = free_port()
    url = f"http://localhost:{port}"
    issuer = subprocess.Popen(
        ISSUER,
        env=issuer_environment(
            {"PORT": str(port), "ISSUER": f"{url}/default", "KEY_DIR": str(directory / "issuer")}
        ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    tcp_port, tls_port = free_port(), free_port()
    try:
        assert issuer.stderr is not None
        for line in issuer.stderr:
            if "listening on" in line:
                break
        with (
            Process(
                directory,
                *arguments,
                PYTHONPATH=str(ROOT),
                EPICS_PVAS_INTF_ADDR_LIST=INSIDE,
                EPICS_PVACMS_SERVER_PORT=str(tcp_port),
                EPICS_PVACMS_TLS_PORT=str(tls_port),
                EPICS_AUTH_JWT_REQUEST_FORMAT="#token#",
                EPICS_AUTH_JWT_REQUEST_METHOD="GET",
                EPICS_AUTH_JWT_RESPONSE_FORMAT='{ *, "valid": "#response#" }',
                EPICS_AUTH_JWT_TRUSTED_URI=f"{url}/default/verify",
                **variables,
            ) as cms,
            RecordingProxy(tcp_port, (INSIDE, tcp_port)) as tcp,
            RecordingProxy(tls_port, (INSIDE, tls_port)) as tls,
        ):
            cms.ready()
            yield Site(directory, cms, url, Port(tcp, tcp_port), Port(tls, tls_port))
    finally:
        issuer.terminate()
        issuer.communicate(timeout=30)
