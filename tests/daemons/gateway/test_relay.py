"""Certificates through a gateway: the tools of the appliance work unchanged, and the service sees who asks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.helpers.authn import Site
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


@pytest.mark.parametrize("way", ["udp", "tcp"])
def test_a_token_becomes_a_keychain(gateway: Outside, way: str) -> None:
    account = gateway.account(way)
    done = account.run("authnjwt", "--token-file", account.token_file(f"outer-{way}"))
    assert done.status == 0, done.err + gateway.log.read_text()
    created = CREATED.search(done.out)
    assert created
    shown = account.run("pvxcert", created["id"])
    assert shown.status == 0, shown.err
    assert "VALID" in shown.out
