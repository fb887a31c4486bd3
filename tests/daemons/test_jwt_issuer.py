"""``jwt-issuer`` as a process, and the certificate service's verifier talking to it with the quick start's settings."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
from datetime import UTC, datetime
from typing import Any

import aiohttp
import jwt
import pytest

from appliance.authn.grant import ProvenIdentity
from appliance.authn.jwt.config import TrustedIssuer, from_environment
from appliance.config import loader
from appliance.issuer import passwords
from appliance.issuer.config import IssuerConfig
from tests.helpers.issuer_process import Issuer, once, running_issuer
from tests.helpers.ports import free_port
from tests.helpers.tokens import Bench, rsa_key


async def fetch(url: str, **parameters: str) -> str:
    async with aiohttp.ClientSession() as http, http.get(url, params=parameters) as answer:
        return await answer.text()


async def token_of(url: str, sub: str = "softioc", password: str = "secret", **more: str) -> str:
    token = await fetch(f"{url}/default/token", sub=sub, password=password, **more)
    assert token.count(".") == 2, token
    return token


def quick_start(port: int, **changes: str) -> dict[str, str]:
    """The variables of the quick start, verbatim but for the port."""
    return {
        "EPICS_AUTH_JWT_REQUEST_FORMAT": "#token#",
        "EPICS_AUTH_JWT_REQUEST_METHOD": "GET",
        "EPICS_AUTH_JWT_RESPONSE_FORMAT": '{ *, "valid": "#response#" }',
        "EPICS_AUTH_JWT_TRUSTED_URI": f"http://localhost:{port}/default/verify",
        **changes,
    }


def trusted(variables: dict[str, str]) -> TrustedIssuer:
    issuer = from_environment(variables)
    assert issuer is not None
    return issuer


async def test_the_quick_starts_settings_work_against_its_validator(tmp_path) -> None:
    port = free_port()
    iss = f"http://localhost:{port}/default"
    async with running_issuer(PORT=str(port), ISSUER=iss, KEY_DIR=str(tmp_path)) as issuer:
        async with Bench(trusted(quick_start(port))) as bench:
            for usage in ("client", "server", "ioc"):
                token = await token_of(f"http://localhost:{port}", sub=usage)
                grant = await bench.accept(token, usage=usage, now=datetime.now(UTC))
                claims = jwt.decode(token, options={"verify_signature": False})
                assert grant.subject == {"CN": usage, "O": "localhost", "OU": "", "C": ""}
                assert grant.not_before == datetime.fromtimestamp(claims["nbf"], UTC)
                assert grant.not_after == datetime.fromtimestamp(claims["exp"], UTC)
                assert grant.identity == ProvenIdentity(iss, usage)
                assert not grant.approval_needed
                assert await bench.refuse(token, usage=usage, now=datetime.now(UTC)) == "replayed"
            good = jwt.decode(token, options={"verify_signature": False})
            header = {"kid": "demo-key-1", "typ": "JWT"}
            forged = jwt.encode({**good, "jti": "x"}, rsa_key(number=4), algorithm="RS256", headers=header)
            assert await bench.refuse(forged, now=datetime.now(UTC)) == "introspect_says_invalid"
        await issuer.logged("GET /default/verify 200")
        assert "eyJ" not in issuer.log
        assert "secret" not in issuer.log


@pytest.mark.parametrize(
    "changes",
    [
        # As the quick start's supervisor file has it: no method named, so POST.
        {"EPICS_AUTH_JWT_REQUEST_METHOD": "", "EPICS_AUTH_JWT_REQUEST_FORMAT": ""},
        {"EPICS_AUTH_JWT_REQUEST_METHOD": "POST", "EPICS_AUTH_JWT_REQUEST_FORMAT": '{ "token": "#token#" }'},
        {"EPICS_AUTH_JWT_RESPONSE_FORMAT": '{ "claims": { * }, "valid": #response# }'},
    ],
)
async def test_other_settings_work_too(tmp_path, changes: dict[str, str]) -> None:
    async with running_issuer(KEY_DIR=str(tmp_path), ISSUER="http://localhost:1/default") as issuer:
        port = int(issuer.url.rsplit(":", 1)[1])
    async with running_issuer(
        PORT=str(port), ISSUER=f"http://localhost:{port}/default", KEY_DIR=str(tmp_path)
    ) as issuer:
        async with Bench(trusted(quick_start(port, **changes))) as bench:
            await bench.accept(await token_of(issuer.url), now=datetime.now(UTC))
            stale = await token_of(issuer.url, iss=f"http://localhost:{port}")
            # The endpoint checks iss as well, and by default wants its own.
            assert await bench.refuse(stale, now=datetime.now(UTC)) == "introspect_says_invalid"


async def test_its_published_keys_serve_through_a_rotation_and_a_restart(tmp_path) -> None:
    port = free_port()
    iss = f"http://localhost:{port}/default"
    variables = {"PORT": str(port), "ISSUER": iss, "KEY_DIR": str(tmp_path / "keys")}
    settings = TrustedIssuer(
        mode="jwks",
        issuer=iss,
        jwks_uri=f"http://localhost:{port}/.well-known/jwks.json",
        audience=("default",),
    )
    async with Bench(settings) as bench:
        async with running_issuer(**variables) as issuer:
            await bench.accept(await token_of(issuer.url), now=datetime.now(UTC))
            old = await token_of(issuer.url)
            issuer.process.send_signal(signal.SIGHUP)
            assert (await issuer.logged(r"signed with the new key (\S+)"))[1] == "demo-key-2"
            new = await token_of(issuer.url)
            assert jwt.get_unverified_header(new)["kid"] == "demo-key-2"
            await bench.accept(new, now=datetime.now(UTC))
            await bench.accept(old, now=datetime.now(UTC))
            kept = await token_of(issuer.url)
            assert await issuer.stop() == 0
        await bench.accept(kept, now=datetime.now(UTC))
        async with running_issuer(**variables) as issuer:
            token = await token_of(issuer.url)
            assert jwt.get_unverified_header(token)["kid"] == "demo-key-2"
            await bench.accept(token, now=datetime.now(UTC))


async def test_it_says_what_it_is_and_listens_on_loopback_only(tmp_path) -> None:
    async with running_issuer(KEY_DIR=str(tmp_path)) as issuer:
        assert issuer.url.startswith("http://127.0.0.1:")
        assert "this is a demonstration issuer" in issuer.log
        assert "anyone on this machine gets a token for any subject" in issuer.log


async def test_it_refuses_to_listen_beyond_loopback(tmp_path) -> None:
    file = tmp_path / "issuer.yml"
    users = f"users:\n  jane: {{password_hash: '{passwords.hash_password('x')}'}}\n"
    file.write_text(f"listen: [0.0.0.0]\n{users}")
    status, _, err = await once("--config", str(file))
    assert status == 1
    assert err.count("\n") == 1
    assert "demonstration issuer: set allow_remote: true" in err
    file.write_text(f"listen: [0.0.0.0]\nallow_remote: true\nkey_dir: {tmp_path}/keys\n{users}")
    async with running_issuer("--config", str(file)) as issuer:
        assert "cross the network in the clear" in issuer.log


async def test_https_with_a_certificate(tmp_path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    certificate = (
        x509.CertificateBuilder(name, name, rsa_key().public_key(), 1)
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2100, 1, 1, tzinfo=UTC))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(rsa_key(), hashes.SHA256())
    )
    (tmp_path / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(
        rsa_key().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    port = free_port()
    file = tmp_path / "issuer.yml"
    file.write_text(
        f"demo: true\nport: {port}\nissuer: https://localhost:{port}/default\nkey_dir: keys\n"
        "tls_certificate: cert.pem\ntls_key: key.pem\n"
    )
    async with running_issuer("--config", str(file), PORT="") as issuer:
        assert issuer.url == f"https://127.0.0.1:{port}"
        async with aiohttp.ClientSession() as http:
            parameters = {"sub": "softioc", "password": "secret"}
            async with http.get(f"{issuer.url}/default/token", params=parameters, ssl=False) as answer:
                token = await answer.text()
        settings = TrustedIssuer(
            trusted_uri=f"https://localhost:{port}/default/verify",
            request_method="GET",
            response_format='{ *, "valid": "#response#" }',
            ca_file=str(tmp_path / "cert.pem"),  # type: ignore[arg-type]
        )
        async with Bench(settings) as bench:
            assert (await bench.accept(token, now=datetime.now(UTC))).subject["O"] == "localhost"
    assert (tmp_path / "keys" / "id_rsa.pem").exists()


async def test_users_of_a_file(tmp_path) -> None:
    status, line, _ = await once("--hash-password", given="correct horse\n")
    assert status == 0
    assert passwords.matches("correct horse", line.strip())
    status, lines, _ = await once("--add-user", "jane", given="battery staple\n")
    assert status == 0
    file = tmp_path / "issuer.yml"
    file.write_text(f"key_dir: keys\nusers:\n  softioc:\n    password_hash: {line}{lines}")
    async with running_issuer("--config", str(file)) as issuer:
        await token_of(issuer.url, "softioc", "correct horse")
        await token_of(issuer.url, "jane", "battery staple")
        assert await fetch(f"{issuer.url}/default/token", sub="jane", password="secret") == "Forbidden"
        assert "demo configuration" not in issuer.log


async def test_helpers_refuse_what_cannot_be_a_password() -> None:
    for given, name in (("", "--hash-password"), ("\n", "--hash-password"), ("x" * 2000, "--hash-password")):
        status, out, err = await once(name, given=given)
        assert (status, out) == (1, "")
        assert err.startswith("Error: a password must")
    status, out, err = await once("--add-user", "a\nb", given="x\n")
    assert (status, out) == (1, "")


async def test_checking_and_printing_the_configuration(tmp_path) -> None:
    file = tmp_path / "issuer.yml"
    file.write_text("demo: true\nport: 8123\n")
    assert await once("--config", str(file), "--check-config") == (0, f"{file}: good\n", "")
    status, out, _ = await once("--config", str(file), "--print-config", KID="other", HS_SECRET="s3cr3t" * 8)
    assert status == 0
    assert "s3cr3t" not in out
    config = loader.loads(re.sub(r"hs_secret: .*", "", out), IssuerConfig)
    assert (config.port, config.kid, config.demo) == (8123, "other", True)
    status, out, _ = await once("--print-schema")
    assert json.loads(out)["$defs"]["IssuerConfig"]["additionalProperties"] is False
    file.write_text("demo: true\nprot: 8123\n")
    status, out, err = await once("--config", str(file), "--check-config")
    assert (status, out) == (1, "")
    assert err.startswith(f"Error: {file}:2: prot: unknown key")
    status, out, err = await once("--check-config", PORT="eighty")
    assert (status, out, err) == (1, "", "Error: PORT: must be an integer\n")


async def test_a_taken_port_is_one_sentence(tmp_path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, _, err = await once(PORT=str(port), KEY_DIR=str(tmp_path))
    assert status == 1
    assert f"cannot listen on 127.0.0.1 port {port}" in err
    assert "Traceback" not in err


async def test_a_key_directory_that_cannot_be_used_is_one_sentence(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    status, _, err = await once(PORT="0", KEY_DIR=str(tmp_path / "file"))
    assert status == 1
    assert "cannot be used: " in err
    assert "Traceback" not in err


async def test_garbage_on_the_socket_is_survived_and_not_logged(tmp_path) -> None:
    async def send(issuer: Issuer, data: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(issuer.url.rsplit(":", 1)[1]))
        writer.write(data)
        writer.write_eof()
        await reader.read()
        writer.close()

    async with running_issuer(KEY_DIR=str(tmp_path)) as issuer:
        marker = b"password=hunter2"
        for data in (
            b"\x16\x03\x01" + marker,
            b"GET /default/token?" + marker + b"\r\n\r\n",
            b"GET /?" + marker + b" HTTP/1.1\r\nHost: a\r\nbroken " + marker + b"\r\n\r\n",
            b"POST /default/token HTTP/1.1\r\nHost: a\r\nContent-Length: x" + marker + b"\r\n\r\n",
            b"GET /?" + marker * 10_000 + b" HTTP/1.1\r\n\r\n",
            b"POST /default/token HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz"
            + marker
            + b"\r\n",
            b"POST /default/token HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data\r\nContent-Length: 16\r\n\r\n"
            + marker,
            b"POST /default/token HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nContent-Length: 16\r\n\r\n"
            + marker,
        ):
            await send(issuer, data)
        assert await fetch(f"{issuer.url}/healthz") == '{"status":"ok"}\n'
        assert "hunter2" not in issuer.log
        assert "Traceback" not in issuer.log


def test_the_module_is_the_entry_point() -> None:
    from appliance.issuer.daemon import main

    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    options: Any = ["--check-config", "--print-config"]
    with pytest.raises(SystemExit):
        main(options)
