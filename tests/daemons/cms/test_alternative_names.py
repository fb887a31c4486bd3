"""Rules with SAG, judged by alternative names that the service has issued: in the certificate service itself and in a gateway.

For an IOC see tests/daemons/ioc/test_access_over_tls.py.
"""

import pytest

from appliance.acf import load_acf
from appliance.authn.ccr import CertRequest, request_value
from appliance.authn.proof import PROOF_FIELD, make_proof
from appliance.certs.san import read_san
from appliance.cli import acf_test
from appliance.errors import AccessDeniedError, ApplianceError, RemoteError
from appliance.tls.context import client_context
from tests.helpers.cms import KEY, KEY_PEM, admin_keychain, keychain_of, plain, running, secure
from tests.helpers.gateways import client_to, gateway_to
from tests.helpers.live import keychain_file
from tests.helpers.ours import double, served

pytestmark = pytest.mark.usefixtures("engine")

# Without a status, so that nobody has to follow one.
SETTINGS = {
    "certs_require_subscription": "no", "require_client_approval": False, "require_server_approval": False
}  # fmt: skip
RULES = """
SAG(consoles) { DNS("*.control.lab"), IP("10.1.0.0/16") }
ASG(DEFAULT) { RULE(1, READ) RULE(1, WRITE) { SAG(consoles) } }
ASG(CERT_STATUS) { RULE(0, READ) { SAG(consoles) } }
"""
GRANTED = {
    "desk": [("dns", "Desk.control.lab")],
    "panel": [("ip", "10.1.2.3")],
    "mapped": [("ip", "::ffff:a01:203")],
    "both": [("dns", "home.lab"), ("ip", "10.1.255.255")],
}
REFUSED = {
    "none": [],
    "home": [("dns", "home.lab")],
    "longer": [("dns", "desk.control.lab.evil.example")],
    "host": [("hostname", "desk")],
    "far": [("ip", "10.2.0.1")],
}


def request(service, name, names=(), usage="client"):
    asked = CertRequest("std", usage, KEY_PEM, name, organization="lab")
    asked = asked._replace(san=tuple(read_san(*entry) for entry in names))
    proof = make_proof(asked, KEY, made=int(service.clock().timestamp()))
    return request_value("CERT:CREATE", asked._replace(verifier={PROOF_FIELD: proof}))


async def holders(service, directory):
    """The keychain of each, approved where it has alternative names."""
    found = {}
    async with plain(service) as anyone, secure(service, admin_keychain(directory)) as admin:
        for name, names in {**GRANTED, **REFUSED}.items():
            reply = await anyone.rpc("CERT:CREATE", request(service, name, names))
            assert reply["state"] == ("PENDING_APPROVAL" if names else "VALID")
            if names:
                await admin.put(reply["status_pv"], {"state": "APPROVED"})
            found[name] = keychain_of(reply)
        reply = await anyone.rpc("CERT:CREATE", request(service, "gateway", usage="server"))
        found["gateway"] = keychain_of(reply)
    return found


async def test_the_service_and_a_gateway_grant_by_names_that_were_issued(tmp_path, capsys):
    async with running(tmp_path, **SETTINGS) as service:
        keychains = await holders(service, tmp_path)
        status = service.names.status(keychains["desk"].certificate.serial_number)
        service.policy.acf = load_acf(RULES, file="rules.acf", gateway=True)
        for name in (*GRANTED, *REFUSED):
            async with secure(service, keychains[name]) as holder:
                if name in GRANTED:
                    assert (await holder.get(status))["state"] == "VALID"
                else:
                    with pytest.raises((AccessDeniedError, RemoteError)):
                        await holder.get(status)
    acf = tmp_path / "gw.acf"
    acf.write_text(RULES)
    tls = {
        "tls_keychain": str(keychain_file(tmp_path, "gateway", keychains["gateway"])),
        "tls_options": "no_revocation_check",
        "no_status_cache": True,
    }
    async with (
        served({"u:pv": double(1.0)}) as server,
        gateway_to(server, pva=tls, access={"file": str(acf)}) as gateway,
    ):
        for name in (*GRANTED, *REFUSED):
            context = client_context(keychains[name], want_staple=False)
            async with client_to(gateway, tls=context) as client:
                if name in GRANTED:
                    await client.put("u:pv", 2.0)
                else:
                    with pytest.raises(AccessDeniedError, match="write access denied"):
                        await client.put("u:pv", 2.0)
    for name, names in {**GRANTED, **REFUSED}.items():
        words = [f"--san={'dns' if kind == 'hostname' else kind}={text}" for kind, text in names]
        acf_test.main(
            [str(acf), "--gateway", "--json", "--asg", "DEFAULT", "--user", name, "--method", "x509", *words]
        )
        assert ('"write": true' in capsys.readouterr().out) is (name in GRANTED), name


async def test_who_only_claims_a_name_has_none(tmp_path):
    async with running(tmp_path, **SETTINGS) as service, plain(service) as anyone:
        reply = await anyone.rpc("CERT:CREATE", request(service, "desk", GRANTED["desk"]))
        assert reply["state"] == "PENDING_APPROVAL"
        service.policy.acf = load_acf(RULES, file="rules.acf", gateway=True)
        async with secure(service, keychain_of(reply)) as holder:
            with pytest.raises(ApplianceError):
                await holder.get(service.names.health, timeout=30)
