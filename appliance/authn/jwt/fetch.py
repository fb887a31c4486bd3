"""Bounded HTTP requests to an issuer: five seconds, a size limit, never to another host.

No error and no log line of this module holds a URL's query, a header or a body: they carry tokens.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple

from appliance.authn.jwt import uri
from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from ssl import SSLContext

    from aiohttp import ClientSession

__all__ = ["TIMEOUT_S", "FetchError", "Fetcher", "Response"]

TIMEOUT_S: Final = 5.0
"""Seconds for the whole request: connecting, redirects and the last byte of the body."""
_MAX_REDIRECTS: Final = 3
_REDIRECTS_ANY_METHOD: Final = frozenset((307, 308))
_REDIRECTS_GET: Final = frozenset((301, 302, 303, 307, 308))


_UNANSWERED: Final = frozenset(
    (
        "timeout",
        "name_not_found",
        "not_reachable",
        "certificate_not_trusted",
        "tls_failure",
        "http_failure",
        "ca_file_unreadable",
        "endpoint_not_acceptable",
    )
)


class FetchError(ApplianceError):
    """A request that brought no usable answer. `reason` is a stable code, `status` the HTTP status if there was one."""

    def __init__(self, reason: str, status: int = 0) -> None:
        self.reason = reason
        self.status = status
        super().__init__(reason.replace("_", " ") + (f" (HTTP status {status})" if status else ""))

    @property
    def answered(self) -> bool:
        """Whether the server was reached and answered."""
        return self.reason not in _UNANSWERED


class Response(NamedTuple):
    """What a server answered."""

    status: int
    body: bytes
    cache_control: str
    allow: str = ""
    """The methods that the server accepts instead (RFC 9110 section 10.2.1)."""
    retry_after: str = ""
    """When to try again (RFC 9110 section 10.2.3)."""

    def __repr__(self) -> str:
        return f"<Response {self.status} {len(self.body)} bytes>"


class Fetcher:
    """One connection pool with its own trust anchors. It uses no cookies, no proxies and nothing from the environment."""

    def __init__(self, *, ca_file: str = "", timeout_s: float = TIMEOUT_S) -> None:
        self._ca_file = ca_file
        self._timeout_s = timeout_s
        self._session: ClientSession | None = None
        self._tls: SSLContext | bool = True

    def _open(self) -> ClientSession:
        if self._session is None or self._session.closed:
            import aiohttp

            if self._ca_file:
                import ssl

                try:
                    self._tls = ssl.create_default_context(cafile=self._ca_file)
                except (OSError, ssl.SSLError):
                    raise FetchError("ca_file_unreadable") from None
            self._session = aiohttp.ClientSession(
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None),
                headers={"Accept-Encoding": "identity", "User-Agent": "spva-cms"},
                connector=aiohttp.TCPConnector(limit=32, ttl_dns_cache=60),
            )
        return self._session

    async def close(self) -> None:
        """Close the pool; a later request opens a new one."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def request(
        self,
        method: str,
        url: str,
        *,
        limit: int,
        params: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
    ) -> Response:
        """Send one request and read at most `limit` bytes of the answer; raises FetchError."""
        import aiohttp

        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._follow(method, url, limit=limit, params=params, headers=headers, body=body)
        except TimeoutError:
            raise FetchError("timeout") from None
        except aiohttp.ClientConnectorCertificateError:
            raise FetchError("certificate_not_trusted") from None
        except aiohttp.ClientConnectorDNSError:
            raise FetchError("name_not_found") from None
        except aiohttp.ClientSSLError:
            raise FetchError("tls_failure") from None
        except aiohttp.ClientConnectorError:
            raise FetchError("not_reachable") from None
        except (aiohttp.ClientError, OSError, ValueError):
            # The texts of these exceptions may quote the URL with the token in it.
            raise FetchError("http_failure") from None

    async def _follow(
        self,
        method: str,
        url: str,
        *,
        limit: int,
        params: dict[str, str] | None,
        headers: dict[str, str] | None,
        body: bytes | None,
    ) -> Response:
        from yarl import URL

        session = self._open()
        target = URL(url)
        origin = target.origin()
        redirects = _REDIRECTS_GET if method == "GET" else _REDIRECTS_ANY_METHOD
        if params:
            target = target.update_query(params)
        for _ in range(_MAX_REDIRECTS + 1):
            async with session.request(
                method, target, headers=headers, data=body, allow_redirects=False, ssl=self._tls
            ) as answer:
                if answer.status in redirects:
                    target = target.join(URL(answer.headers.get("Location", "")))
                    if target.origin() != origin:
                        raise FetchError("redirect_elsewhere", answer.status)
                    continue
                if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
                    raise FetchError("compressed", answer.status)
                if answer.content_length is not None and answer.content_length > limit:
                    answer.close()
                    raise FetchError("too_large", answer.status)
                data = bytearray()
                async for chunk in answer.content.iter_any():
                    data += chunk
                    if len(data) > limit:
                        answer.close()
                        raise FetchError("too_large", answer.status)
                head = answer.headers
                return Response(
                    answer.status,
                    bytes(data),
                    head.get("Cache-Control", ""),
                    head.get("Allow", ""),
                    head.get("Retry-After", ""),
                )
        raise FetchError("too_many_redirects")


def check_endpoint(url: str, *, insecure_http: bool = False) -> None:
    """Raise FetchError for an endpoint that must not get a token; `insecure_http` is the issuer's ``allow_insecure_http``."""
    where = uri.parse(url)
    if where is None or not uri.is_acceptable(where, insecure_http=insecure_http):
        raise FetchError("endpoint_not_acceptable")
