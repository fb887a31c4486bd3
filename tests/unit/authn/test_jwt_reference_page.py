"""The reference page and the code say the same."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from appliance.authn.jwt.config import ENVIRONMENT, JWTConfig, TrustedIssuer
from appliance.config import loader
from appliance.issuer.config import VARIABLES, IssuerConfig

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/reference/jwt-verification.md").read_text()
ISSUER_PAGE = (ROOT / "docs/reference/jwt-issuer.md").read_text()
CODES = re.compile(r'(?:TokenRefused|StrictFormatError|KeySetError|FetchError)\(\s*"([a-z0-9_]+)"')


def test_every_reason_is_explained() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "appliance/authn/jwt").glob("*.py"))
    reasons = set(CODES.findall(sources))
    assert len(reasons) > 60
    named = set(re.findall(r"[a-z0-9_]{4,}", PAGE))
    # Why a key set could not be used goes to the log, behind jwks_not_available.
    assert {reason for reason in reasons - named if not reason.startswith("jwks_")} == set()


def test_every_setting_is_explained_with_its_default() -> None:
    for kind, page in ((TrustedIssuer, PAGE), (IssuerConfig, ISSUER_PAGE)):
        rows = [line for line in page.splitlines() if line.startswith("| `")]
        for field in msgspec.structs.fields(kind):
            row = next((row for row in rows if f"`{field.name}`" in row.split("|")[1]), "")
            assert row or field.name == "any_audience", field.name
            default = field.default
            if isinstance(default, int) and not isinstance(default, bool):
                assert str(default) in row, field.name
    for field in msgspec.structs.fields(JWTConfig):
        assert f"{field.name}:" in PAGE


def test_every_variable_is_in_the_table() -> None:
    for variable, field in ENVIRONMENT.items():
        flag = "--" + variable.removeprefix("EPICS_AUTH_").lower().replace("_", "-")
        assert re.search(rf"\| `{variable}` \| `{flag}` \| `{field}`", PAGE), variable
    for variable, field in VARIABLES.items():
        assert re.search(rf"\| `{field}` \| `{variable}` \|", ISSUER_PAGE), variable


def test_the_example_configuration_is_good() -> None:
    block = PAGE.split("## Trusted issuers\n\n")[1].split("\n\n| key")[0]
    text = "\n".join(line.removeprefix("    ") for line in block.splitlines())
    config = loader.loads(text, JWTConfig)
    assert [issuer.mode for issuer in config.issuers] == ["jwks", "introspect"]
    assert config.peer_per_minute == JWTConfig().peer_per_minute
