"""Certificates through a gateway: the tools of the appliance work unchanged, and the service sees who asks."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.client import Context
from appliance.config.address import Endpoint
from appliance.config.pva import ClientConfig
from appliance.errors import RemoteError
from tests.helpers.authn import Site
from tests.helpers.cms import ccr, jwt_request
from tests.helpers.gateway_site import Outside, outside, site_inside

CREATED = re.compile(r"Certificate identifier  : (?P<id>[0-9a-f]{8}:[0-9]+)\n")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_inside(tmp_path_factory.mktemp("inside")) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    """A gateway whose server side has a certificate, for clients that know it as a TLS name server only."""
    folder = tmp_path_factory.mktemp("gateway")
    host = site.account()
    done = host.run("authnjwt", "-u", "ioc", "--token-file", host.token_file("gateway"))
    assert done.status == 0, done.err
    keychain = str(host.config / "server.p12")
    with outside(site, folder, pva={"tls_keychain": keychain}) as running:
        yield running


def test_a_token_becomes_a_keychain_where_a_search_reaches_the_gateway(gateway: Outside) -> None:
    account = gateway.account("udp")
    done = account.run("authnjwt", "--token-file", account.token_file("outer-udp"))
    assert done.status == 0, done.err + gateway.log.read_text()
    created = CREATED.search(done.out)
    assert created
    shown = account.run("pvxcert", created["id"])
    assert shown.status == 0, shown.err
    assert "VALID" in shown.out


def test_a_name_is_requested_approved_found_and_revoked_over_a_name_server(gateway: Outside) -> None:
    account, administrator = gateway.account("tcp"), gateway.administrator("tcp")
    done = account.run("authnstd", "-n", "IOC-outer", "-o", "outer")
    assert done.status == 3, done.err
    created = CREATED.search(done.out)
    assert created
    identifier = created["id"]
    assert account.run("pvxcert", identifier).status == 3
    listed = administrator.run("pvxcert", "list", "--pending", "--subject", "ioc-outer", "--json")
    assert [json.loads(line)["cert_id"] for line in listed.out.splitlines()] == [identifier], listed.err
    approved = administrator.run("pvxcert", "--approve", identifier)
    assert approved.status == 0, approved.err
    assert account.run("pvxcert", identifier).status == 0
    mine = account.run("pvxcert", "--approve", identifier)
    assert mine.status == 1, "the service sees who asks, and not the gateway"
    revoked = administrator.run("pvxcert", "--revoke", identifier)
    assert revoked.status == 0, revoked.err
    shown = account.run("pvxcert", identifier)
    assert "REVOKED" in shown.out


def test_anchor_health_and_metrics_are_read_like_other_pvs(gateway: Outside) -> None:
    account = gateway.account()
    for name in ("ROOT", "ISSUER", "HEALTH", "METRICS"):
        shown = account.run("pvxget", f"CERT:{name}")
        assert shown.status == 0, shown.err
    anchor = account.run("authnstd", "-a")
    assert anchor.status == 0, anchor.err
    secure = gateway.administrator().run("pvxget", "CERT:ROOT")
    assert secure.status == 0, secure.err


def test_audit_names_the_client_and_its_port_and_not_the_relay(gateway: Outside) -> None:
    account = gateway.account()
    done = account.run("authnstd", "-n", "audited", "-o", "outer")
    assert done.status == 3, done.err
    line = gateway.site.cms.log_line("issued to CN=audited")
    record = json.loads(line)
    assert record["peer"].startswith("127.0.0.1:")
    assert record["via"].startswith("127.0.0.1:")
    assert record["via"] != record["peer"]
    assert record["protocol"] == "tls"


def test_a_client_that_reaches_the_gateway_over_tls_alone_can_do_everything(
    gateway: Outside, tmp_path: Path
) -> None:
    """EPICS_PVA_NAME_SERVERS=pvas://... and nothing else: no datagram, no plain TCP. The trust anchor comes in a file."""
    account = gateway.account("tls")
    refused = account.run("authnstd", "-n", "early", "-o", "outer")
    assert refused.status == 1
    assert "there is no trust anchor to verify them with; give it with --trust-anchor FILE" in refused.err
    anchor = tmp_path / "anchor.pem"
    root = gateway.site.authority.certificate
    anchor.write_bytes(root.public_bytes(Encoding.PEM))
    token = account.token_file("outer-tls")
    done = account.run("authnjwt", "--token-file", token, "--trust-anchor", anchor)
    assert done.status == 0, done.err + gateway.log.read_text()
    created = CREATED.search(done.out)
    assert created
    assert "VALID" in account.run("pvxcert", created["id"]).out
    other = gateway.account("tls")
    asked = other.run("authnstd", "-n", "by-tls", "-o", "outer", "--trust-anchor", anchor)
    assert asked.status == 3, asked.err
    waiting = CREATED.search(asked.out)
    assert waiting
    administrator = gateway.administrator("tls")
    assert administrator.run("pvxcert", "--approve", waiting["id"]).status == 0
    listed = administrator.run("pvxcert", "list", "--subject", "by-tls", "--json")
    assert [json.loads(line)["state"] for line in listed.out.splitlines()] == ["VALID"], listed.err
    shown = account.run("pvxget", "-v", "CERT:HEALTH")
    assert shown.status == 0, shown.err
    assert administrator.run("pvxcert", "--revoke", waiting["id"]).status == 0
    assert "REVOKED" in account.run("pvxcert", waiting["id"]).out


def test_a_program_that_asks_without_tls_gets_its_certificate_too_and_never_under_the_gateways_name(
    site: Site, tmp_path: Path
) -> None:
    """C++ requesters use plain TCP. The gateway has a certificate on both sides, and must not lend it."""
    host = site.account()
    assert host.run("authnjwt", "-u", "ioc", "--token-file", host.token_file("lent")).status == 0
    keychain = str(host.config / "server.p12")
    with outside(site, tmp_path, client={"tls_keychain": keychain}) as running:
        config = ClientConfig(
            auto_addr_list=False, name_servers=(Endpoint("127.0.0.1", running.ports["tcp"]),), tls_keychain=""
        )

        async def ask() -> str:
            async with Context(config, beacons=False) as context:
                reply = await context.rpc("CERT:CREATE", ccr("plain-one", organization="outer"), timeout=30)
                with pytest.raises(RemoteError, match="needs TLS from you"):
                    await context.rpc("CERT:CREATE", jwt_request("a.b.c"))
                return str(reply["state"])

        state = asyncio.run(ask())
        assert state == "PENDING_APPROVAL"
    line = json.loads(site.cms.log_line("issued to CN=plain-one"))
    assert line["protocol"] == "tcp", "the service has seen no certificate"
    assert line["method"] != "x509"
