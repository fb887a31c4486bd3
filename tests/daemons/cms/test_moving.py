"""The how-to "Move the certificate service to another host", step by step, with two directories for the two hosts."""

import asyncio
import re
import shutil
import stat

import pytest

from appliance.certs.keychain import load_keychain
from appliance.certs.profiles import generate_key
from appliance.errors import RemoteError
from tests.helpers.cms import Process, ccr, client, keychain_of, pem
from tests.helpers.ports import free_port

OPEN = "--certs-dont-require-approval"


def once(directory, *arguments):
    with Process(directory, *arguments) as process:
        return process.wait()


def fingerprint(process):
    return re.search(r"Certificate Authority Fingerprint +: (sha256:[0-9a-f]{64})", "".join(process.lines))[1]


def move(old, new):
    """Bring what the how-to names from one place to the other, private."""
    new.mkdir(parents=True, mode=0o700)
    for path in old:
        shutil.copyfile(path, new / path.name)
        (new / path.name).chmod(stat.S_IRUSR | stat.S_IWUSR)


async def test_the_service_moves_to_another_host_and_nobody_notices(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    tcp = str(free_port())
    ports = {"EPICS_PVACMS_SERVER_PORT": tcp}
    with Process(old, OPEN, **ports) as process:
        process.ready()
        published = fingerprint(process)
        admin = load_keychain((process.config_dir / "admin.p12").read_bytes())
        async with client(process.tcp_port) as anyone, client(process.tls_port, admin) as administrator:
            good, bad, waits = [
                await anyone.rpc("CERT:CREATE", ccr(name)) for name in ("good", "bad", "waits")
            ]
            await administrator.put(bad["status_pv"], {"state": "REVOKED"})
        status, _, log = process.stop()
        assert status == 0, log
    _, audit, _ = once(old, "--audit-verify")
    copy = tmp_path / "certs.db"
    assert once(old, "--backup", str(copy))[0] == 0
    config, data = process.config_dir, process.db.parent
    with Process(new, "--version") as empty:
        empty.wait()
        move([config / name for name in ("cert_auth.p12", "pvacms.p12", "pvacms.acf")], empty.config_dir)
        move([copy, data / "certs.db.revoked", data / "certs.db.tokens"], empty.db.parent)
    # The head of the audit's chain is the same, so nothing was lost and nothing was added.
    assert once(new, "--audit-verify")[1] == audit
    with Process(new, OPEN, **ports) as process:
        process.ready()
        assert fingerprint(process) == published
        assert not (process.config_dir / "admin.p12").exists(), "administrators keep their keychains"
        async with client(process.tcp_port) as anyone, client(process.tls_port, admin) as administrator:
            states = [(await anyone.get(reply["status_pv"]))["state"] for reply in (good, bad, waits)]
            assert states == ["VALID", "REVOKED", "VALID"]
            await administrator.put(waits["status_pv"], {"state": "REVOKED"})
            # The key of a certificate that was revoked is certified no more: here as there.
            with pytest.raises(RemoteError, match="revoked"):
                await anyone.rpc("CERT:CREATE", ccr("after"))
            key = generate_key("ec-p256")
            after = await anyone.rpc("CERT:CREATE", ccr("after", pub_key=pem(key)))
            assert keychain_of(after, key).anchors == admin.anchors
            with pytest.raises(RemoteError, match="Duplicate"):
                await anyone.rpc("CERT:CREATE", ccr("good", pub_key=pem(generate_key("ec-p256"))))
        process.stop()
    assert (await asyncio.to_thread(once, new, "--audit-verify"))[0] == 0
