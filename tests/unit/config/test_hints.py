"""A configuration file that is nearly right is answered with what to write instead."""

from __future__ import annotations

import pytest

from appliance.cms.config import CMSSettings
from appliance.config.loader import loads
from appliance.errors import ConfigurationError
from appliance.ioc.config import IocConfig
from appliance.issuer.config import IssuerConfig


@pytest.mark.parametrize(
    ("kind", "text", "why"),
    [
        (
            IocConfig,
            "acf: file.acf",
            "macros, inputs_require_tls, organizations, not text; write: acf: {file: file.acf}",
        ),
        (IocConfig, "chanel_access: true", "1: chanel_access: unknown key; did you mean channel_access? Known are acf, "),
        (IocConfig, "channel-access: true", "did you mean channel_access?"),
        (IocConfig, "pva: {server_prt: 5}", "1: pva.server_prt: unknown key; did you mean server_port?"),
        (IocConfig, "databases: x.db", "databases: expected a list, not text; write: databases: [{file: x.db}]"),
        (IocConfig, "databases: [x.db]", "not text; write: - {file: x.db}"),
        (IocConfig, "databases: [{file: x.db, macro: {P: x}}]", "databases[0].macro: unknown key; did you mean macros?"),
        (IocConfig, "channel_access: yes please", "channel_access: expected true or false, not text"),
        (IocConfig, "pva: 5", "pva: expected a mapping with the keys auto_beacon_addr_list, "),
        (IssuerConfig, "{demo: true, algo: RS255}", "algo: unknown value RS255; did you mean RS256? Known are HS256, RS256"),
        (IssuerConfig, "{demo: true, algo: rs256}", "did you mean RS256?"),
        (IssuerConfig, "{demo: true, listen: 127.0.0.1}", 'not text; write: listen: ["127.0.0.1"]'),
        (IssuerConfig, "{users: alice}", "users: expected a mapping, not text"),
        (IssuerConfig, "{demo: true, port: abc}", "port: expected a whole number, not text"),
        (IssuerConfig, "{demo: true, kid: 5}", 'kid: expected text, not a number; write: kid: "5"'),
        (IssuerConfig, "[a]", "expected a mapping with the keys listen, port, "),
        (CMSSettings, "ccr_burst: 0", "ccr_burst: expected a number of at least 1, not 0"),
        (CMSSettings, "ccr_per_minute: -1", "ccr_per_minute: expected a number of at least 0, not -1"),
        (CMSSettings, "ccr_per_minute: 1e9", "expected a number of at most 1000000, not 1000000000.0"),
        (CMSSettings, 'proxy_from: [""]', "proxy_from[0]: expected at least 1 character, not 0"),
        (CMSSettings, "jwt: 5", "jwt: expected a mapping with the keys issuers, "),
    ],
)  # fmt: skip
def test_the_sentence_says_what_to_write(kind: type, text: str, why: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        loads(text, kind, file="f")
    assert why in str(raised.value)


@pytest.mark.parametrize(
    "text", ["acf: 'a\\nb: {c}'", "acf: '" + "x" * 5000 + "'", 'acf: "\\u001b[31m"', "acf: ''"]
)
def test_a_hostile_value_stays_one_short_line(text: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        loads(text, IocConfig, file="f")
    said = str(raised.value).partition("; write: ")[2].splitlines()[0]
    assert len(said) < 120
    assert said.isprintable()


def test_a_word_that_is_like_none_gets_no_guess() -> None:
    with pytest.raises(ConfigurationError, match=r"xyzzy: unknown key; known are acf, "):
        loads("xyzzy: 1", IocConfig)
