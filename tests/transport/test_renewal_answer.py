"""CERT:CREATE answered without a certificate: the service renewed the one that is there (SPVA 9.2, 9.4)."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.authn.requester import Requester, Trusting
from appliance.authn.settings import resolve_requester
from appliance.authn.std.requester import std_request
from appliance.certs.keychain import Keychain, dump_keychain
from appliance.cms.wire_types import root_value
from appliance.errors import SecurityError
from appliance.pvdata import STRING, UINT64, StructType, Value
from appliance.server import Operation, SharedPV
from tests.helpers.ours import served
from tests.helpers.pki import DAY, NOW, site

S = site()
LONG = S.ca.keychain("client", not_after=NOW + 3650 * DAY)
ANSWER = StructType((("issuer", STRING), ("serial", UINT64), ("state", STRING), ("renew_by", UINT64)))


def answering(keychain: Keychain, **more: object) -> dict[str, SharedPV]:
    """The PVs of a service that renews ``keychain`` whatever is asked; as pvxs-cms of 2026, which counts from 1990."""
    told = {
        "issuer": S.ca.issuer_id,
        "serial": keychain.serial,
        "state": "VALID",
        "renew_by": 1_300_000_000,
        **more,
    }

    def create(pv: SharedPV, operation: Operation, argument: Value | None) -> Value:
        return Value(ANSWER, told)

    return {
        "CERT:ROOT": SharedPV(root_value(S.ca.issuer_id, S.ca.certificate, ())),
        f"CERT:CREATE:{S.ca.issuer_id}": SharedPV(on_rpc=create),
    }


def requester(server_port: int, directory: Path, said: list[str]) -> Requester:
    settings = resolve_requester(
        "client",
        {"keychain": str(directory / "k.p12"), "name": "client"},
        {
            "XDG_CONFIG_HOME": str(directory),
            "EPICS_PVA_ADDR_LIST": f"127.0.0.1:{server_port}",
            "EPICS_PVA_AUTO_ADDR_LIST": "NO",
        },
    )
    return Requester(settings, Trusting(), say=said.append, timeout_s=10)


async def test_the_keychain_stays_and_the_user_is_told(tmp_path: Path) -> None:
    path = tmp_path / "k.p12"
    path.write_bytes(dump_keychain(LONG))
    path.chmod(0o600)
    before = path.read_bytes()
    said: list[str] = []
    async with served(answering(LONG)) as server:
        asking = requester(server.udp_port, tmp_path, said)
        outcome = await asking.request(
            std_request(asking.settings, now=asking.now()), subject=None, force=True
        )
    assert (outcome.action, outcome.state.value) == ("renewed", "VALID")
    assert outcome.cert_id == f"{S.ca.issuer_id}:{LONG.serial}"
    assert path.read_bytes() == before
    assert "renewed the certificate" in said[-1]
    assert "Mar 13" in said[-1]
    assert "2031" in said[-1]


@pytest.mark.parametrize("case", ["no keychain", "another certificate", "revoked"])
async def test_what_was_renewed_elsewhere_or_is_over_is_an_error_and_writes_nothing(
    case: str, tmp_path: Path
) -> None:
    path = tmp_path / "k.p12"
    if case != "no keychain":
        path.write_bytes(dump_keychain(S.client))
        path.chmod(0o600)
    pvs = answering(
        S.server if case == "another certificate" else S.client,
        state="REVOKED" if case == "revoked" else "VALID",
    )
    async with served(pvs) as server:
        asking = requester(server.udp_port, tmp_path, [])
        with pytest.raises(
            SecurityError, match="REVOKED" if case == "revoked" else "issued nothing.*nothing was written"
        ):
            await asking.request(std_request(asking.settings, now=asking.now()), subject=None, force=True)
    assert path.exists() is (case != "no keychain")
