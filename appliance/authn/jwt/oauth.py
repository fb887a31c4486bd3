"""Tokens of the site's identity provider: OAuth 2.0 client credentials and device authorization.

RFC 6749 sections 4.4 and 6, RFC 8628; the endpoints by configuration or by discovery (RFC 8414, OpenID Connect
Discovery). oauthlib writes and reads the messages; `Fetcher` carries them, within its bounds.

No error and no log line holds a secret, a token or a code, and of what the provider answers only the code of an error.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple
from urllib.parse import quote, urlencode

from msgspec import Meta

from appliance.authn.jwt import uri
from appliance.authn.jwt.fetch import Fetcher, FetchError, Response
from appliance.authn.jwt.strict_json import StrictFormatError, load_object
from appliance.authn.jwt.token import MAX_TOKEN_BYTES, clean
from appliance.config.files import read_private, write_private
from appliance.config.loader import Settings, default, load
from appliance.config.secret import FilePath, Secret
from appliance.errors import ConfigurationError, TokenUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from oauthlib.oauth2 import Client

__all__ = ["OAuthClient", "OAuthSettings", "load_settings"]

_MAX_ANSWER_BYTES: Final = 256 * 1024
_CONTENT: Final = "application/x-www-form-urlencoded"
_INTERVAL_S: Final = 5
"""Seconds between two questions if the provider names none, and what `slow_down` adds (RFC 8628 sections 3.2 and 3.5)."""
_LONGEST_INTERVAL_S: Final = 300
_LONGEST_CODE_S: Final = 3600
_OPENID: Final = "{}/.well-known/openid-configuration"
_HINTS: Final = {
    "access_denied": "the person who was asked said no",
    "expired_token": "nobody entered the code in time",
    "invalid_client": "it does not accept this client; check client_id, client_secret and client_auth",
    "invalid_grant": "it does not accept this grant any more",
    "invalid_scope": "check scope",
    "invalid_target": "check resource and audience",
    "unauthorized_client": "allow this client the grant {grant} at the provider",
    "unsupported_grant_type": "it does not offer the grant {grant}",
}


class OAuthSettings(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a token is obtained from an OAuth 2.0 identity provider: the file that ``--oauth`` names."""

    grant: Literal["client_credentials", "device_code"]
    """`client_credentials`: the host's own account. `device_code`: a person signs in on another device."""
    issuer: Annotated[str, Meta(max_length=512)] = ""
    """The provider's issuer URL; its discovery document names the endpoints."""
    token_url: Annotated[str, Meta(max_length=2048)] = ""
    """The token endpoint, of a provider without discovery."""
    device_authorization_url: Annotated[str, Meta(max_length=2048)] = ""
    """The device authorization endpoint, of a provider without discovery."""
    client_id: Annotated[str, Meta(min_length=1, max_length=512)]
    """The client's name at the provider."""
    client_secret: Secret = default(Secret())
    """The client's secret: ``${credential:NAME}`` or ``${file:/PATH}``."""
    client_auth: Literal["basic", "post", "none"] = "basic"
    """How the client shows its secret: in a header, in the form, or not at all (a public client)."""
    scope: Annotated[str, Meta(max_length=1024)] = ""
    """Scopes to ask for, separated by blanks."""
    audience: Annotated[str, Meta(max_length=512)] = ""
    """For whom the token is (`audience`), if the provider reads this parameter."""
    resource: tuple[Annotated[str, Meta(min_length=1, max_length=512)], ...] = ()
    """For whom the token is, as RFC 8707 says it (`resource`)."""
    token: Literal["access_token", "id_token"] = "access_token"  # noqa: S105 - a field's name, not a secret
    """Which of the tokens in the provider's answer is used."""
    refresh_file: FilePath = default(FilePath(""))
    """Where the grant `device_code` keeps its refresh token. Empty: beside the keychain, with the ending ``.refresh``."""
    ca_file: FilePath = default(FilePath(""))
    """Trust anchors (PEM) of the provider's HTTPS certificate. Empty: those of the system."""
    allow_insecure_http: bool = False
    """Send secrets and tokens over plain HTTP beyond the loopback address, where everybody on the way can read them."""

    def __post_init__(self) -> None:
        if bool(self.issuer) == bool(self.token_url):
            raise ValueError(
                "token_url: give either issuer, whose discovery names the endpoints, or token_url"
            )
        for name in ("issuer", "token_url", "device_authorization_url"):
            text = getattr(self, name)
            if text and (problem := _problem(text, insecure=self.allow_insecure_http)):
                raise ValueError(f"{name}: {problem}")
        if self.issuer and self.device_authorization_url:
            raise ValueError("device_authorization_url: has no effect beside issuer; leave one of them out")
        if self.grant == "client_credentials":
            if self.client_auth == "none":
                raise ValueError("client_auth: the grant client_credentials needs a secret: basic or post")
            for name in ("device_authorization_url", "refresh_file"):
                if getattr(self, name):
                    raise ValueError(f"{name}: has no meaning for the grant client_credentials")
        elif self.token_url and not self.device_authorization_url:
            raise ValueError("device_authorization_url: the grant device_code needs it beside token_url")
        if self.client_auth == "none" and self.client_secret:
            raise ValueError("client_secret: has no effect with client_auth: none")
        if self.client_auth != "none" and not self.client_secret:
            raise ValueError(f"client_secret: required for client_auth: {self.client_auth}")


def _problem(text: str, *, insecure: bool) -> str:
    where = uri.parse(text)
    if where is None:
        return uri.fault(text)
    if not insecure and not uri.is_acceptable(where):
        return (
            "must use https, except on this machine's loopback address (allow_insecure_http: true allows it)"
        )
    return ""


def load_settings(path: str, environ: Mapping[str, str]) -> OAuthSettings:
    """Read the file that ``--oauth`` names.

    Raises:
        ConfigurationError: The file or a secret that it names cannot be used.
    """
    return load(path, OAuthSettings, environ=environ)


class _Endpoints(NamedTuple):
    token: str
    device: str
    methods: str = ""
    """The ways to authenticate that the provider names, for a message."""


class OAuthClient:
    """Get tokens from one provider.

    Args:
        settings: What `load_settings` has read.
        refresh_file: Where a refresh token is kept if the settings name no file.
        say: Gets what a person must read: the device flow's code, warnings.
        fetcher: What carries the requests. It is closed together with this object.
        sleep: Waits for some seconds.
        clock: A monotonic clock in seconds.
    """

    def __init__(
        self,
        settings: OAuthSettings,
        *,
        refresh_file: str,
        say: Callable[[str], None],
        fetcher: Fetcher | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._refresh_file = settings.refresh_file or refresh_file
        self._say = say
        self._fetcher = Fetcher(ca_file=settings.ca_file) if fetcher is None else fetcher
        self._sleep = sleep
        self._clock = clock
        self._found: _Endpoints | None = None
        self._refresh_token = ""
        self._lock = asyncio.Lock()
        if settings.allow_insecure_http:
            say(f"allow_insecure_http: secrets and tokens of {self.name} may be sent unencrypted")

    def __repr__(self) -> str:
        return f"<OAuthClient {self.name}>"

    @property
    def name(self) -> str:
        """The provider, for messages."""
        return self._settings.issuer or self._settings.token_url

    async def close(self) -> None:
        """Close the connections."""
        await self._fetcher.close()

    async def token(self) -> str:
        """Return the text of a new token.

        Raises:
            TokenUnavailable: There is none at present; the error says when to try again.
        """
        async with self._lock:
            try:
                if self._settings.grant == "client_credentials":
                    return self._pick(await self._client_credentials())
                return self._pick(await self._refreshed() or await self._ask_person())
            except FetchError as error:
                self._found = None
                raise TokenUnavailable(
                    f"{self.name} could not be asked for a token: {error}",
                    kind="refused" if error.answered else "unreachable",
                ) from None

    # -- the grants ------------------------------------------------------------------------------------

    async def _client_credentials(self) -> dict[str, Any]:
        from oauthlib.oauth2 import BackendApplicationClient

        client = BackendApplicationClient(self._settings.client_id)
        where = await self._endpoints()
        body = client.prepare_request_body(body=self._wanted(), **self._shown())
        return self._read(client, await self._post(where.token, body))

    async def _refreshed(self) -> dict[str, Any] | None:
        """Return the answer to the refresh token that is kept; None if there is none, or it is of no use any more."""
        from oauthlib.oauth2.rfc8628.clients import DeviceClient

        where = await self._endpoints()
        kept = self._kept(where)
        if not kept:
            return None
        client = DeviceClient(self._settings.client_id)
        body = client.prepare_refresh_body(
            refresh_token=kept, body=self._wanted(scope=False), **self._shown()
        )
        try:
            answer = self._read(client, await self._post(where.token, body))
        except TokenUnavailable as error:
            if error.code != "invalid_grant":
                raise
            self._keep("", where)
            return None
        self._keep_from(answer, where)
        return answer

    async def _ask_person(self) -> dict[str, Any]:
        """Run the device authorization flow (RFC 8628 sections 3.1 to 3.5)."""
        from oauthlib.oauth2.rfc8628.clients import DeviceClient

        where = await self._endpoints()
        if not where.device:
            raise TokenUnavailable(
                f"{self.name} offers no device authorization; use another grant or token source",
                kind="refused",
            )
        client = DeviceClient(self._settings.client_id)
        shown = self._shown()
        # Section 3.1 needs client_id of public clients only, but common providers want it of every client.
        fields = {"client_id": self._settings.client_id, **shown}
        del fields["include_client_id"]
        answer = await self._post(where.device, f"{urlencode(fields)}&{self._wanted()}".strip("&"))
        if answer.status != 200:
            self._read(client, answer)
        code, interval, ends = self._show_code(answer)
        while True:
            await self._sleep(interval)
            if self._clock() >= ends:
                raise self._refusal("expired_token")
            body = client.prepare_request_body(code, **self._shown())
            try:
                got = self._read(client, await self._post(where.token, body))
            except FetchError as error:
                if error.answered:
                    raise
                interval = min(2 * interval, _LONGEST_INTERVAL_S)  # section 3.5: back off
                continue
            except TokenUnavailable as error:
                if error.code == "slow_down":
                    interval = min(interval + _INTERVAL_S, _LONGEST_INTERVAL_S)
                elif error.kind != "refused":
                    interval = min(2 * interval, _LONGEST_INTERVAL_S)
                elif error.code != "authorization_pending":
                    raise
                continue
            self._keep_from(got, where)
            if not self._refresh_token:
                self._say(
                    f"{self.name} gave no refresh token: each renewal needs a person again; check scope"
                )
            return got

    def _show_code(self, answer: Response) -> tuple[str, int, float]:
        """Tell the person where to enter the code. Return the device code, the interval and the end of waiting."""
        told = self._object(answer)
        device, shown, where = (told.get(key) for key in ("device_code", "user_code", "verification_uri"))
        lasts, interval = told.get("expires_in"), told.get("interval", _INTERVAL_S)
        if not (
            isinstance(device, str)
            and isinstance(shown, str)
            and isinstance(where, str)
            and isinstance(lasts, int)
            and isinstance(interval, int)
            and 0 < len(device) <= MAX_TOKEN_BYTES
            and 0 < len(shown) <= 64
            and where.startswith(("https://", "http://"))
        ):
            raise self._unclear(
                "its device authorization has no usable device_code, user_code or verification_uri"
            )
        lasts = min(max(lasts, 1), _LONGEST_CODE_S)
        self._say(
            f"to sign in, open {clean(where)} on any device and enter the code {clean(shown, 64)} "
            f"(within {max(lasts // 60, 1)} min)"
        )
        return device, min(max(interval, 1), _LONGEST_INTERVAL_S), self._clock() + lasts

    # -- messages --------------------------------------------------------------------------------------

    def _shown(self) -> dict[str, Any]:
        """Return what the form says about the client itself."""
        settings = self._settings
        if settings.client_auth == "post":
            return {"include_client_id": True, "client_secret": settings.client_secret.reveal()}
        return {"include_client_id": settings.client_auth == "none"}

    def _wanted(self, *, scope: bool = True) -> str:
        settings = self._settings
        fields = [("scope", settings.scope)] if scope and settings.scope else []
        if settings.audience:
            fields.append(("audience", settings.audience))
        return urlencode([*fields, *(("resource", item) for item in settings.resource)])

    async def _post(self, url: str, body: str) -> Response:
        headers = {"Content-Type": _CONTENT, "Accept": "application/json", "User-Agent": "spva-authn"}
        settings = self._settings
        if settings.client_auth == "basic":
            # RFC 6749 section 2.3.1: both parts are form-encoded first. %20 is read by decoders that do not know +.
            pair = f"{quote(settings.client_id, safe='')}:{quote(settings.client_secret.reveal(), safe='')}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode('ascii')).decode('ascii')}"
        return await self._fetcher.request(
            "POST", url, limit=_MAX_ANSWER_BYTES, headers=headers, body=body.encode("utf-8")
        )

    def _object(self, answer: Response) -> dict[str, Any]:
        try:
            return load_object(answer.body)
        except StrictFormatError as error:
            raise self._unclear(f"HTTP status {answer.status}, {error}") from None

    def _read(self, client: Client, answer: Response) -> dict[str, Any]:
        """Return a successful answer of the token endpoint."""
        from oauthlib.oauth2 import OAuth2Error

        if answer.status in (429, 503):
            wait = (
                int(answer.retry_after)
                if answer.retry_after.isdecimal() and len(answer.retry_after) < 6
                else 0
            )
            raise TokenUnavailable(
                f"{self.name} has no time for us (HTTP status {answer.status}); try again later",
                kind="limited",
                retry_s=float(wait),
            )
        if answer.status >= 500:
            raise TokenUnavailable(f"{self.name} has a fault (HTTP status {answer.status}); try again later")
        told = self._object(answer)
        if "error" in told:
            code = told["error"]
            raise self._refusal(clean(code, 40) if isinstance(code, str) else "error", answer.status)
        if answer.status != 200:
            raise self._unclear(f"HTTP status {answer.status}")
        told.pop(
            "scope", None
        )  # a narrower one is the provider's right; the certificate service judges the token
        try:
            client.parse_request_body_response(json.dumps(told))
        except (OAuth2Error, ValueError, TypeError, AttributeError, ArithmeticError):
            # From None: the exception may repeat what the answer holds.
            raise self._unclear("it holds no token") from None
        return told

    def _pick(self, answer: dict[str, Any]) -> str:
        name = self._settings.token
        text = answer.get(name)
        if name == "access_token" and str(answer.get("token_type", "bearer")).lower() != "bearer":
            raise self._unclear("its token is of another type than Bearer (RFC 6749 section 7.1)")
        if not isinstance(text, str) or not text:
            hint = "; scope must have the word openid" if name == "id_token" else ""
            raise self._unclear(f"it holds no {name}{hint}")
        if text.count(".") != 2 or len(text) > MAX_TOKEN_BYTES:
            raise TokenUnavailable(
                f"{self.name} gives an {name} that is no signed JSON Web Token, so the certificate service cannot read it; "
                "configure the provider to issue JWTs (RFC 9068), or use the other token (token: access_token or id_token)",
                kind="refused",
            )
        return text

    def _refusal(self, code: str, status: int = 0) -> TokenUnavailable:
        hint = _HINTS.get(code, "").format(grant=self._settings.grant)
        if code == "invalid_client" and self._found is not None and self._found.methods:
            hint += f" (it accepts {self._found.methods})"
        told = f"{code}, HTTP status {status}" if status else code
        return TokenUnavailable(
            f"{self.name} gives no token ({told}){': ' if hint else ''}{hint}", kind="refused", code=code
        )

    def _unclear(self, why: str) -> TokenUnavailable:
        self._found = None
        return TokenUnavailable(f"the answer of {self.name} cannot be used: {why}", kind="refused")

    # -- endpoints -------------------------------------------------------------------------------------

    async def _endpoints(self) -> _Endpoints:
        settings = self._settings
        if self._found is None:
            if settings.token_url:
                self._found = _Endpoints(settings.token_url, settings.device_authorization_url)
            else:
                self._found = self._discovered(await self._discover())
        return self._found

    async def _discover(self) -> dict[str, Any]:
        """Return the provider's metadata: OpenID Connect Discovery section 4, else RFC 8414 section 3."""
        issuer = self._settings.issuer
        parts = uri.parse(issuer)
        assert parts is not None, "the settings were checked"
        path = parts.path.rstrip("/")
        origin = issuer.rstrip("/").removesuffix(path)
        status = 0
        for url in (
            _OPENID.format(issuer.rstrip("/")),
            f"{origin}/.well-known/oauth-authorization-server{path}",
        ):
            answer = await self._fetcher.request(
                "GET",
                url,
                limit=_MAX_ANSWER_BYTES,
                headers={"Accept": "application/json", "User-Agent": "spva-authn"},
            )
            if answer.status == 200:
                return self._object(answer)
            status = answer.status
        if status >= 500:
            raise TokenUnavailable(f"{self.name} has a fault (HTTP status {status}); try again later")
        raise self._unclear(
            f"it has no discovery document (HTTP status {status}); check issuer, or set token_url"
        )

    def _discovered(self, about: dict[str, Any]) -> _Endpoints:
        settings = self._settings
        if about.get("issuer") != settings.issuer:
            raise self._unclear(
                f"its discovery document names the issuer {clean(str(about.get('issuer')))}; "
                "issuer must be the same text (RFC 8414 section 3.3)"
            )
        found = []
        for name in ("token_endpoint", "device_authorization_endpoint"):
            url = about.get(name, "")
            problem = (
                _problem(url, insecure=settings.allow_insecure_http) if isinstance(url, str) else "not text"
            )
            if url and problem:
                raise self._unclear(f"{name} {problem}")
            found.append(url)
        if not found[0]:
            raise self._unclear("its discovery document names no token_endpoint")
        methods = about.get("token_endpoint_auth_methods_supported")
        known = (
            [clean(item, 40) for item in methods[:8] if isinstance(item, str)]
            if isinstance(methods, list)
            else []
        )
        return _Endpoints(found[0], found[1], ", ".join(known))

    # -- the refresh token -----------------------------------------------------------------------------

    def _kept(self, where: _Endpoints) -> str:
        """Return the refresh token that this client got from this endpoint; it is never sent to another one."""
        if self._refresh_token or not os.path.lexists(self._refresh_file):
            return self._refresh_token
        try:
            told = load_object(read_private(self._refresh_file, 2 * MAX_TOKEN_BYTES).data)
        except (ConfigurationError, StrictFormatError) as error:
            self._say(f"the refresh token is not used: {error}")
            return ""
        token = told.get("refresh_token")
        same = told.get("token_url") == where.token and told.get("client_id") == self._settings.client_id
        self._refresh_token = token if same and isinstance(token, str) else ""
        return self._refresh_token

    def _keep_from(self, answer: dict[str, Any], where: _Endpoints) -> None:
        token = answer.get("refresh_token")
        if isinstance(token, str) and 0 < len(token) <= MAX_TOKEN_BYTES and token != self._refresh_token:
            self._keep(token, where)

    def _keep(self, token: str, where: _Endpoints) -> None:
        self._refresh_token = token
        text = json.dumps(
            {"client_id": self._settings.client_id, "token_url": where.token, "refresh_token": token}
        )
        try:
            write_private(self._refresh_file, text.encode("ascii"))
        except ConfigurationError as error:
            self._say(f"the refresh token is kept only as long as this program runs: {error}")
