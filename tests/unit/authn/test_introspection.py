"""Introspection over real sockets: what is sent, what is believed, and what is not."""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from socket import AF_INET

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from appliance.authn.grant import ProvenIdentity
from appliance.authn.jwt import token as tokens
from appliance.authn.jwt.config import TrustedIssuer, from_environment
from appliance.authn.jwt.introspect import render
from appliance.config.secret import Secret
from tests.helpers.tokens import Bench, IdP, jwks_issuer, raw, rsa_key, running


@pytest.fixture
async def idp() -> AsyncIterator[IdP]:
    async with running() as server:
        yield server


def answers(text: str, status: int = 200, **headers: str):
    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.Response(text=text, status=status, headers=headers)

    return answer


def trusted(idp: IdP, **changes) -> TrustedIssuer:
    return TrustedIssuer(**{"trusted_uri": idp.verify_uri, "usages": ("client",), **changes})


async def test_get_sends_the_token_in_the_header_and_as_a_parameter(idp: IdP) -> None:
    idp.introspection = answers("valid")
    token = idp.token()
    async with Bench(trusted(idp, request_method="GET")) as bench:
        await bench.accept(token)
    assert idp.requests == [f"GET /realm/verify?token={token}"]
    assert idp.authorizations == [f"Bearer {token}"]


@pytest.mark.parametrize(
    ("request_format", "body", "content_type"),
    [
        ("#token#", "{token}", "text/plain; charset=utf-8"),
        ('{ "token": "#token#" }', '{{ "token": "{token}" }}', "application/json"),
        ('{"t":"#token#","k":"#kid#"}', '{{"t":"{token}","k":"k1"}}', "application/json"),
        ("token=#token#&kid=#kid#", "token={token}&kid=k1", "application/x-www-form-urlencoded"),
        ("<t>#token#</t><t>#token#</t>", "<t>{token}</t><t>{token}</t>", "text/plain; charset=utf-8"),
    ],
)
async def test_post_sends_the_format_verbatim(
    idp: IdP, request_format: str, body: str, content_type: str
) -> None:
    idp.introspection = answers("valid")
    token = idp.token()
    async with Bench(trusted(idp, request_format=request_format)) as bench:
        await bench.accept(token)
    assert idp.requests == ["POST /realm/verify"]
    assert idp.bodies == [body.format(token=token).encode()]
    assert idp.content_types == [content_type]
    assert idp.authorizations == [""]


async def test_an_endpoint_that_wants_to_know_who_asks_is_told(idp: IdP) -> None:
    idp.introspection = answers("valid")
    secret = Secret("Basic Y21zOnNlY3JldA==")
    async with Bench(trusted(idp, request_authorization=secret)) as bench:
        await bench.accept(idp.token())
    assert idp.authorizations == ["Basic Y21zOnNlY3JldA=="]
    with pytest.raises(ValueError, match="request_authorization: with GET"):
        trusted(idp, request_authorization=secret, request_method="GET")


@pytest.mark.parametrize("kid", ['","x":"', "a b", "a&b", "#token#", "\u00e9", "a%20b"])
async def test_a_kid_that_could_change_the_request_is_not_sent(idp: IdP, kid: str) -> None:
    idp.introspection = answers("valid")
    async with Bench(trusted(idp, request_format='{"t":"#token#","k":"#kid#"}')) as bench:
        assert await bench.refuse(idp.token(header={"kid": kid})) == "kid_not_plain"
    async with Bench(trusted(idp)) as bench:
        await bench.accept(idp.token(header={"kid": kid}))


def test_a_missing_kid_is_sent_as_nothing() -> None:
    idp = IdP()
    assert render("#kid#|#token#", tokens.parse(idp.token(header={"kid": ...}))).startswith("|eyJ")


@pytest.mark.parametrize(
    ("status", "good"),
    [(200, True), (201, False), (204, False), (301, False), (400, False), (401, False), (500, False)],
)
async def test_response_code_mode_looks_at_the_code_only(idp: IdP, status: int, good: bool) -> None:
    idp.introspection = answers("false" if status == 200 else "", status)
    async with Bench(trusted(idp, use_response_code=True)) as bench:
        if good:
            await bench.accept(idp.token())
        else:
            assert (await bench.refuse(idp.token())).startswith("introspect_")


@pytest.mark.parametrize(
    ("text", "status", "reason"),
    [
        ("no", 200, "introspect_says_invalid"),
        ("valid", 500, "introspect_server_error"),
        ("valid", 403, "introspect_says_invalid"),
        ("", 200, "introspect_says_invalid"),
        ("valid" * 20_000, 200, "introspect_too_large"),
    ],
)
async def test_other_answers_are_refusals(idp: IdP, text: str, status: int, reason: str) -> None:
    idp.introspection = answers(text, status)
    async with Bench(trusted(idp)) as bench:
        assert await bench.refuse(idp.token()) == reason


async def test_an_answer_that_is_not_text_is_a_refusal(idp: IdP) -> None:
    async def binary(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"valid\xff")

    idp.introspection = binary
    async with Bench(trusted(idp)) as bench:
        assert await bench.refuse(idp.token()) == "introspect_not_text"


@pytest.mark.parametrize("answer", ['{"exp":1,"active":true}', '{"active":true}', '{"active":true,"exp":1}'])
async def test_a_member_of_the_answer_can_be_named(idp: IdP, answer: str) -> None:
    """RFC 7662: the order of the members is the issuer's."""
    idp.introspection = answers(answer)
    async with Bench(trusted(idp, response_member="active", request_format="token=#token#")) as bench:
        await bench.accept(idp.token())
        idp.introspection = answers('{"active":false}')
        assert await bench.refuse(idp.token(jti="x")) == "introspect_says_invalid"
        idp.introspection = answers('{"valid":true}')
        assert await bench.refuse(idp.token(jti="x")) == "introspect_member_missing"


async def test_a_word_that_was_planted_in_the_claims_does_not_count(idp: IdP) -> None:
    idp.introspection = answers('{"ext":{"active":true,"x":1},"sub":"a","active":false}')
    async with Bench(trusted(idp, response_format='{*"active": #response#,*}')) as bench:
        assert await bench.refuse(idp.token()) == "introspect_ambiguous"


# What the issuer answered, and who is told of it


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (302, "introspect_unexpected_status"),
        (400, "introspect_says_invalid"),
        (401, "introspect_says_invalid"),
        (403, "introspect_says_invalid"),
        (404, "introspect_unexpected_status"),
        (405, "introspect_unexpected_status"),
        (429, "introspect_asked_too_often"),
        (500, "introspect_server_error"),
        (503, "introspect_server_error"),
    ],
)
async def test_log_facts_and_requester_learn_the_status(
    idp: IdP, status: int, reason: str, method: str, caplog
) -> None:
    idp.introspection = answers("", status)
    async with Bench(trusted(idp, request_method=method)) as bench:
        got = await bench.refuse(idp.token())
    if method == "GET" and status == 302:  # followed, and never arrives
        assert got in {
            "introspect_too_many_redirects",
            "introspect_redirect_elsewhere",
            "introspect_http_failure",
        }
        return
    assert got == reason
    facts = bench.refusal.facts
    assert facts["http_status"] == str(status)
    assert f"HTTP status {status}" in facts["issuer_answer"]
    if reason != "introspect_says_invalid":
        assert f"HTTP status {status}" in bench.refusal.public
        assert f"HTTP status {status}" in caplog.text


async def test_an_issuer_that_cannot_be_reached_is_no_issuer_that_refuses(idp: IdP, caplog) -> None:
    token = idp.token()
    idp.introspection = answers("no")
    async with Bench(trusted(idp)) as bench:
        assert await bench.refuse(token) == "introspect_says_invalid"
        refused = bench.refusal
    gone = trusted(idp, issuer=idp.issuer, trusted_uri="http://127.0.0.1:9/verify")
    nameless = trusted(idp, issuer=idp.issuer, trusted_uri="https://no-such-host.invalid/verify")
    for issuer, reason in ((gone, "introspect_not_reachable"), (nameless, "introspect_name_not_found")):
        async with Bench(issuer) as bench:
            assert await bench.refuse(token) == reason
        assert bench.refusal.public == "the token's issuer could not be asked; try again later"
        assert "http_status" not in bench.refusal.facts
        assert bench.refusal.facts["issuer_answer"] == reason.removeprefix("introspect_").replace("_", " ")
        assert f"{issuer.trusted_uri}): {bench.refusal.facts['issuer_answer']}" in caplog.text
    assert "does not say that the token is valid" in refused.public
    assert refused.facts["issuer_answer"] == "HTTP status 200"


async def test_an_issuer_that_knows_get_only_is_hinted_at_once_a_minute(idp: IdP, caplog) -> None:
    """The quick start's supervisor file names no method, so the endpoint is asked by POST."""

    async def get_only(request: web.Request) -> web.StreamResponse:
        if request.method != "GET":
            raise web.HTTPMethodNotAllowed(request.method, ["GET", "HEAD", "OPTIONS"])
        return web.Response(text='{"claims":{},"valid":true}')

    idp.introspection = get_only
    variables = {
        "EPICS_AUTH_JWT_RESPONSE_FORMAT": '{ *, "valid": "#response#" }',
        "EPICS_AUTH_JWT_TRUSTED_URI": idp.verify_uri,
    }
    async with Bench(from_environment(variables)) as bench:
        assert await bench.refuse(idp.token()) == "introspect_unexpected_status"
        assert await bench.refuse(idp.token(jti="again")) == "introspect_unexpected_status"
        assert caplog.text.count("set EPICS_AUTH_JWT_REQUEST_METHOD=GET") == 1
        assert "HTTP status 405" in caplog.text
        assert "it allows GET,HEAD,OPTIONS" in caplog.text
        bench.clock.now += 60
        await bench.refuse(idp.token(jti="later"))
        assert caplog.text.count("set EPICS_AUTH_JWT_REQUEST_METHOD=GET") == 2
    caplog.clear()
    async with Bench(from_environment({**variables, "EPICS_AUTH_JWT_REQUEST_METHOD": "GET"})) as bench:
        await bench.accept(idp.token())
    assert not caplog.text


async def test_other_settings_that_do_not_fit_are_hinted_at(idp: IdP, caplog) -> None:
    for method, status, headers, hint in (
        ("GET", 405, {"Allow": "POST"}, "EPICS_AUTH_JWT_REQUEST_METHOD=POST"),
        ("POST", 404, {}, "EPICS_AUTH_JWT_TRUSTED_URI"),
        ("GET", 404, {}, "EPICS_AUTH_JWT_TRUSTED_URI"),
        ("POST", 415, {}, "EPICS_AUTH_JWT_REQUEST_FORMAT"),
        ("POST", 401, {}, "set request_authorization"),
        ("POST", 429, {"Retry-After": "120"}, "try again after 120"),
    ):
        idp.introspection = answers("", status, **headers)
        caplog.clear()
        async with Bench(trusted(idp, request_method=method)) as bench:
            await bench.refuse(idp.token())
        assert hint in caplog.text
    idp.introspection = answers('{"active":true}')
    caplog.clear()
    async with Bench(trusted(idp, response_format='{*,"active":#response#}')) as bench:
        assert await bench.refuse(idp.token()) == "introspect_says_invalid"
    assert "but not as EPICS_AUTH_JWT_RESPONSE_FORMAT" in caplog.text


async def test_a_method_that_is_not_allowed_either_is_not_hinted_at(idp: IdP, caplog) -> None:
    idp.introspection = answers("", 405, Allow="PUT")
    async with Bench(trusted(idp)) as bench:
        await bench.refuse(idp.token())
    assert "REQUEST_METHOD" not in caplog.text
    assert "it allows PUT" in caplog.text


async def test_a_tls_port_that_speaks_no_tls_is_a_failure_of_tls(idp: IdP) -> None:
    issuer = trusted(idp, issuer=idp.issuer, trusted_uri=idp.verify_uri.replace("http:", "https:"))
    async with Bench(issuer) as bench:
        assert await bench.refuse(idp.token()) == "introspect_tls_failure"
        assert bench.refusal.public == "the token's issuer could not be asked; try again later"


@pytest.mark.parametrize(("status", "text"), [(503, ""), (403, ""), (200, "no keys"), (200, '{"keys":[]}')])
async def test_published_keys_that_cannot_be_used_are_told_with_the_status(
    idp: IdP, caplog, status: int, text: str
) -> None:
    idp.jwks = answers(text, status)
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token()) == "jwks_not_available"
        assert bench.refusal.facts["http_status"] == str(status)
        assert f"HTTP status {status}" in bench.refusal.facts["issuer_answer"]
        assert f"answered (HTTP status {status}), but without keys that can be used" in bench.refusal.public
    assert f"HTTP status {status}" in caplog.text


async def test_an_issuer_that_cannot_be_asked_for_its_keys_is_no_issuer_that_answered(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp, jwks_uri="http://127.0.0.1:9/keys")) as bench:
        assert await bench.refuse(idp.token()) == "jwks_not_available"
        assert bench.refusal.public == "the token's issuer could not be asked for its keys; try again later"
        assert bench.refusal.facts["issuer_answer"] == "not reachable"
        assert "http_status" not in bench.refusal.facts


@pytest.mark.parametrize("status", [400, 404, 405, 501])
async def test_where_no_request_method_is_configured_log_and_audit_name_the_variable(
    idp: IdP, status: int, caplog
) -> None:
    """Step 6 of the quick start leaves the method out."""
    idp.introspection = answers("", status)
    async with Bench(from_environment({"EPICS_AUTH_JWT_TRUSTED_URI": idp.verify_uri})) as bench:
        await bench.refuse(idp.token())
    assert "EPICS_AUTH_JWT_REQUEST_METHOD" in bench.refusal.facts["hint"]
    assert bench.refusal.facts["hint"] in caplog.text
    assert "EPICS_AUTH_JWT" not in bench.refusal.public


class OnThisMachine(AbstractResolver):
    """Every name is this machine's."""

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        there = {"hostname": host, "host": "127.0.0.1", "port": port, "family": AF_INET, "proto": 0}
        return [ResolveResult(**there, flags=0)]

    async def close(self) -> None:
        pass


async def test_an_issuer_beyond_this_machine_is_asked_by_plain_http_if_the_configuration_says_so(
    idp: IdP,
) -> None:
    idp.introspection = answers("valid")
    port = idp.origin.rpartition(":")[2]
    origin = f"http://issuer.example:{port}"
    for issuer in (
        TrustedIssuer(trusted_uri=f"{origin}/realm/verify", allow_insecure_http=True),
        jwks_issuer(idp, issuer=f"{origin}/realm", jwks_uri=f"{origin}/realm/keys", allow_insecure_http=True),
    ):
        async with Bench(issuer) as bench:
            trusted = bench.verifier._by_uri or bench.verifier._by_name[issuer.issuer]
            session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=OnThisMachine()))
            trusted.fetcher._session = session
            grant = await bench.accept(idp.token(iss=f"{origin}/realm"))
        assert grant.subject["O"] == "issuer.example"
    assert idp.requests == ["POST /realm/verify", "GET /realm/keys"]


async def test_an_answer_in_pieces_is_read_and_a_compressed_one_is_not(idp: IdP) -> None:
    async def in_pieces(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "text/html"})
        answer.enable_chunked_encoding()
        await answer.prepare(request)
        for piece in (b'{"exp":1,"act', b'ive":tr', b"ue}"):
            await answer.write(piece)
        return answer

    async def compressed(_request: web.Request) -> web.StreamResponse:
        body = gzip.compress(b'{"active":true}')
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    async with Bench(trusted(idp, response_member="active")) as bench:
        idp.introspection = in_pieces
        await bench.accept(idp.token())
        idp.introspection = compressed
        assert await bench.refuse(idp.token(jti="x")) == "introspect_compressed"
        assert bench.refusal.facts["http_status"] == "200"
        idp.introspection = answers('{"active":true,"x":"\u00e9"}')
        await bench.accept(idp.token(jti="y"))


async def test_a_valid_answer_does_not_waive_the_rules(idp: IdP) -> None:
    idp.introspection = answers("valid")
    async with Bench(trusted(idp, audience=("cms",))) as bench:
        for changes, reason in (
            ({"exp": ...}, "exp_missing"),
            ({"aud": "x"}, "aud_wrong"),
            ({"sub": "a,b"}, "sub_characters"),
            ({"iss": "https://evil.example"}, "iss_not_trusted"),
        ):
            assert await bench.refuse(idp.token(**changes)) == reason
        assert (
            await bench.refuse(raw({"alg": "none", "typ": "JWT"}, idp.claims(), signature=b"x"))
            == "alg_not_allowed"
        )
        assert idp.requests == []
        token = idp.token()
        await bench.accept(token)
        assert await bench.refuse(token) == "replayed"


async def test_the_token_is_never_sent_to_another_host(idp: IdP) -> None:
    async with running() as elsewhere:
        elsewhere.introspection = answers("valid")

        for method in ("GET", "POST"):
            for status in (301, 302, 303, 307, 308):
                idp.introspection = answers("", status, Location=elsewhere.verify_uri)
                async with Bench(trusted(idp, request_method=method)) as bench:
                    assert (await bench.refuse(idp.token())).startswith("introspect_")
        assert elsewhere.requests == []


async def test_a_silent_endpoint_is_given_up(idp: IdP) -> None:
    let_go = asyncio.Event()

    async def silence(_request: web.Request) -> web.StreamResponse:
        await let_go.wait()
        return web.Response(text="valid")

    idp.introspection = silence
    async with Bench(trusted(idp)) as bench:
        bench.verifier._by_uri.fetcher._timeout_s = 0.2
        assert await bench.refuse(idp.token()) == "introspect_timeout"
        assert bench.refusal.public == "the token's issuer could not be asked; try again later"
    let_go.set()


async def test_an_endpoint_that_is_not_there_is_a_refusal_without_the_token_in_the_log(
    idp: IdP, caplog
) -> None:
    issuer = TrustedIssuer(trusted_uri="http://127.0.0.1:9/realm/verify", request_method="GET")
    idp.origin = "http://127.0.0.1:9"
    token = idp.token()
    with caplog.at_level(logging.DEBUG):
        async with Bench(issuer) as bench:
            assert await bench.refuse(token) == "introspect_not_reachable"
    assert token not in caplog.text
    assert token not in repr(bench.refusal.__cause__)


async def test_https_from_an_unknown_ca_is_a_refusal_and_from_the_sites_ca_is_good(tmp_path) -> None:
    import ssl

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    key = rsa_key()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "cert.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret = tmp_path / "key.pem"
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem, secret)
    idp = IdP()
    idp.introspection = answers("valid")
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", idp._any)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    idp.origin = f"https://localhost:{runner.addresses[0][1]}"
    try:
        async with Bench(trusted(idp)) as bench:
            assert await bench.refuse(idp.token()) == "introspect_certificate_not_trusted"
        assert idp.requests == []
        async with Bench(trusted(idp, ca_file=str(pem))) as bench:
            assert (await bench.accept(idp.token())).subject["O"] == "localhost"
        async with Bench(trusted(idp, ca_file=str(tmp_path / "none.pem"))) as bench:
            assert await bench.refuse(idp.token()) == "introspect_ca_file_unreadable"
    finally:
        await runner.cleanup()


# The comparison of iss with the trusted URI


@pytest.mark.parametrize("tail", ["/realm/verify", "/realm", "/realm/", "", "/"])
async def test_an_issuer_above_the_trusted_uri_is_meant(idp: IdP, tail: str) -> None:
    idp.introspection = answers("valid")
    async with Bench(trusted(idp)) as bench:
        grant = await bench.accept(idp.token(iss=idp.origin + tail))
    assert grant.identity == ProvenIdentity(idp.origin + tail, "softioc")


@pytest.mark.parametrize(
    "tail",
    [
        "/real",
        "/realm/verify/x",
        "/realm/x",
        "/REALM",
        "/realm?x",
        "/realm#x",
        "/realm/../realm",
        "//realm",
        "/%72ealm",
        "/realm//",
    ],
)
async def test_an_issuer_elsewhere_on_the_host_is_not_meant(idp: IdP, tail: str) -> None:
    idp.introspection = answers("valid")
    async with Bench(trusted(idp)) as bench:
        assert await bench.refuse(idp.token(iss=idp.origin + tail)) == "iss_not_trusted"


@pytest.mark.parametrize(
    "change",
    [
        lambda o: o.replace("http:", "https:"),
        lambda o: o + "1",
        lambda o: o.replace("127.0.0.1", "127.0.0.2"),
        lambda o: o.replace("127.0.0.1", "localhost"),
        lambda o: o.replace("//", "//x@"),
        lambda o: o.replace("http", "HTTP"),
    ],
)
async def test_an_issuer_of_another_origin_is_not_meant(idp: IdP, change) -> None:
    idp.introspection = answers("valid")
    async with Bench(trusted(idp)) as bench:
        assert await bench.refuse(idp.token(iss=change(idp.origin) + "/realm")) == "iss_not_trusted"


async def test_a_token_without_issuer_means_the_trusted_uri(idp: IdP) -> None:
    idp.introspection = answers("valid")
    async with Bench(trusted(idp)) as bench:
        grant = await bench.accept(idp.token(iss=...))
    assert grant.identity == ProvenIdentity(idp.verify_uri, "softioc")
    assert grant.subject["O"] == "127.0.0.1"


async def test_an_exact_issuer_is_preferred_and_excludes_others(idp: IdP) -> None:
    idp.introspection = answers("valid")
    async with Bench(trusted(idp, issuer=idp.issuer)) as bench:
        await bench.accept(idp.token())
        assert await bench.refuse(idp.token(iss=...)) == "iss_missing"
        assert await bench.refuse(idp.token(iss=idp.origin)) == "iss_not_trusted"
    exact = trusted(idp, issuer=idp.issuer, approval=True)
    async with Bench(trusted(idp), exact) as bench:
        assert (await bench.accept(idp.token())).approval_needed


async def test_the_variables_alone_give_every_usage(idp: IdP) -> None:
    idp.introspection = answers("OK")
    issuer = from_environment({"EPICS_AUTH_JWT_TRUSTED_URI": idp.verify_uri})
    async with Bench(issuer) as bench:
        for number, usage in enumerate(("client", "server", "ioc")):
            await bench.accept(idp.token(jti=str(number)), usage=usage)
