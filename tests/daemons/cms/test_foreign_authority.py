"""The certificate service with an authority that other tools have made, and names that try to pose as others."""

import subprocess

import pytest

from appliance.certs.x509 import MAX_SERIAL, serial_number
from tests.helpers.cms import ccr, keychain_of, plain, running

SUBJECT = "/DC=org/DC=example/ST=Some State/L=A Place, and more/O=Site/CN=Site Root"


def authority(path, *options: object) -> None:
    """An authority as ``openssl req -x509`` makes it: a serial number of 160 bits, no key usage."""
    for arguments in (
        ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", path / "key", "-out", path / "cert", "-days", 365, *options],
        ["pkcs12", "-export", "-inkey", path / "key", "-in", path / "cert", "-out", path / "cert_auth.p12", "-passout", "pass:"],
    ):  # fmt: skip
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60)
    (path / "cert_auth.p12").chmod(0o600)


@pytest.mark.parametrize(
    "options",
    [
        ["-subj", SUBJECT],
        ["-subj", "/CN=Site Root", "-set_serial", MAX_SERIAL >> 1],
        ["-subj", "/O=No common name"],
        ["-subj", "/CN=Site Root", "-addext", "subjectKeyIdentifier=none"],
        ["-subj", "/CN=Site Root", "-addext", "keyUsage=critical,keyCertSign,cRLSign"],
    ],
    ids=["names", "twenty-octets", "no-common-name", "no-key-identifier", "key-usage"],
)
async def test_the_service_starts_with_an_authority_of_openssl_and_issues(tmp_path, options):
    authority(tmp_path, *options)
    async with running(tmp_path) as service, plain(service) as context:
        issued = keychain_of(await context.rpc("CERT:CREATE", ccr()))
        assert issued.issuer == service.authority.issuer.certificate
        assert serial_number(issued.certificate) < 1 << 63
        assert (await context.get(issued.status_pv))["state"] == "PENDING_APPROVAL"
        root = await context.get("CERT:ROOT")
        assert root["issuer"] == issued.issuer_id


async def test_a_name_cannot_pose_as_several_parts_in_what_is_logged_and_shown(tmp_path, caplog):
    caplog.set_level("INFO")
    async with running(tmp_path) as service, plain(service) as context:
        issued = keychain_of(await context.rpc("CERT:CREATE", ccr("operator, O=control-room, OU=shift")))
    shown = r"CN=operator\, O=control-room\, OU=shift"
    assert issued.subject.startswith(shown)
    assert shown in caplog.text
    assert "CN=operator, O=control-room" not in caplog.text
    assert issued.cert_id in caplog.text, "one spelling of the identifier"
