"""What an authenticator says to the certificate service, and how it is sure that it is this service."""

from __future__ import annotations

import asyncio
import re
import time
from datetime import datetime
from typing import TYPE_CHECKING, Final, Self

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from appliance.authn.ccr import CertReply, CertRequest, read_reply, request_value
from appliance.authn.settings import RequesterSettings
from appliance.authn.trust import Offer, Trust, read_offer, trust_only
from appliance.certs.keychain import Keychain
from appliance.certs.x509 import find_extension, load_der, subject_text
from appliance.client.context import Context
from appliance.errors import (
    ApplianceError,
    CertificateError,
    ChannelClosedError,
    OperationTimeoutError,
    RemoteError,
    SecurityError,
)

if TYPE_CHECKING:
    from appliance.authn.status import CheckedStatus
    from appliance.pvdata import Value

__all__ = ["LIMITED", "Line", "ask_offer", "ask_status", "cms_only"]

LIMITED: Final = re.compile(r"retry in (\d{1,5}) s\b")
"""How the service says when to ask again."""


def cms_only(_: bytes | None, chain: tuple[bytes, ...]) -> None:
    """Refuse, inside the TLS handshake, a server that is not the certificate service itself.

    Each server of the site has a certificate of the same CA, and each could answer a search for CERT:CREATE. Only the
    service's own certificate may sign OCSP responses (SPVA specification 4.2), which the CA never grants to requesters.

    Raises:
        CertificateError: The certificate or key is not acceptable; the text says why.
    """
    if not chain:
        raise CertificateError("the certificate cannot be read: there is none")
    leaf = load_der(chain[0])
    purposes = find_extension(leaf, x509.ExtendedKeyUsage)
    if purposes is None or ExtendedKeyUsageOID.OCSP_SIGNING not in purposes:
        raise CertificateError(
            f"it is {subject_text(leaf.subject)}, a certificate of this site but not the certificate service's own"
        )


async def ask_offer(
    settings: RequesterSettings, anchors: tuple[x509.Certificate, ...], *, now: datetime, timeout_s: float
) -> Offer:
    """Ask the service for its trust anchor.

    Args:
        settings: How to find it.
        anchors: What is trusted already, for sites that serve nothing without TLS.
        now: The present time, aware.
        timeout_s: How long to wait, in seconds.

    Raises:
        ApplianceError: It did not answer, or its answer is unusable.
    """
    from appliance.authn.status import public_context

    name = settings.pv("ROOT")
    try:
        async with public_context(settings.client, anchors) as context:
            value = await context.get(name, timeout=timeout_s)
    except OperationTimeoutError as error:
        raise OperationTimeoutError(
            f"{error}. No certificate service was found: check that it runs, and that EPICS_PVA_ADDR_LIST or "
            "EPICS_PVA_NAME_SERVERS reach it"
        ) from error
    return read_offer(value, now=now)


class Line:
    """A connection to the certificate service for the requests of one run, opened by the first of them.

    The service takes one token for several requests only if all come over one connection (docs/decisions/0083).

    Args:
        secret: Requests hold a secret; send them only over TLS, and only to the certificate service itself.
        allow_plaintext: Send even a secret unencrypted if there is no TLS.
    """

    def __init__(self, *, secret: bool = False, allow_plaintext: bool = False) -> None:
        self.secret = secret
        self.require_tls = secret and not allow_plaintext
        self._refusals: list[str] = []
        self._context: Context | None = None
        self._ends: tuple[object, ...] = ()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection. A later request opens another one."""
        context, self._context = self._context, None
        if context is not None:
            await context.close()

    async def send(
        self, settings: RequesterSettings, request: CertRequest, trust: Trust, *, timeout_s: float
    ) -> CertReply:
        """Send a request for a certificate.

        If the connection is lost before the answer comes, the same request is sent once more, to whichever node of the service
        answers then. That is safe: at most one of the two certificates stays valid (docs/decisions/0105).

        Args:
            settings: How to find the service.
            request: The request, with its proof.
            trust: What is trusted.
            timeout_s: How long to wait, in seconds.

        Raises:
            ApplianceError: It failed; the text says why.
        """
        name = settings.pv("CREATE", trust.issuer)
        argument = request_value(name, request)
        context = await self._open(settings, trust)
        try:
            return read_reply(await _call(context, name, argument, timeout_s))
        except OperationTimeoutError as error:
            if self._refusals:
                raise SecurityError(
                    f"the server that answers for {name} is not the certificate service: {self._refusals[-1]}; "
                    "the token was not sent to it"
                ) from error
            if self.require_tls:
                raise SecurityError(
                    f"{error}. The certificate service could not be reached over TLS, and the token was not sent unencrypted: "
                    "check that the service has TLS enabled and that its TLS port can be reached "
                    "(on a network that you trust entirely, use --allow-plaintext-token)"
                ) from error
            raise

    async def _open(self, settings: RequesterSettings, trust: Trust) -> Context:
        from appliance.tls.context import client_context

        ends = (settings.client, trust.anchors, trust.crossed)
        if self._context is not None and ends == self._ends:
            return self._context
        await self.close()
        secret = self.secret
        anchors = trust_only(trust.anchors, trust.crossed)
        tls = client_context(anchors, want_staple=secret, check_staple=self._check if secret else None)
        # A name server need not be the service: it is asked where the service is, and gets nothing else.
        search_tls = client_context(anchors, want_staple=False) if secret else None
        context = Context(
            settings.client, tls=tls, require_tls=self.require_tls, beacons=False, search_tls=search_tls
        )
        await context.start()
        self._context, self._ends = context, ends
        return context

    def _check(self, staple: bytes | None, chain: tuple[bytes, ...]) -> None:
        try:
            cms_only(staple, chain)
        except CertificateError as error:
            self._refusals.append(str(error))
            raise


async def _call(context: Context, name: str, argument: Value, timeout_s: float) -> Value | None:
    """Call the service, and once more if the answer was lost; then wait too, if a node asks for that."""
    end = time.monotonic() + timeout_s
    is_lost = False
    while True:
        try:
            return await context.rpc(name, argument, timeout=max(0.1, end - time.monotonic()))
        except ChannelClosedError:
            if is_lost or time.monotonic() >= end:
                raise
            is_lost = True
        except RemoteError as error:
            asked = LIMITED.search(str(error))
            pause = float(asked[1]) if asked else 0.0
            if not is_lost or not asked or time.monotonic() + pause >= end:
                raise
            # Another node may be about to give the answer that we will never see.
            await asyncio.sleep(pause)


async def ask_status(
    settings: RequesterSettings, keychain: Keychain, *, now: datetime, timeout_s: float
) -> CheckedStatus | None:
    """Return the verified status of a keychain's certificate; None if it names no status PV, or nobody answers.

    Args:
        settings: How to find the service.
        keychain: The keychain.
        now: The present time, aware.
        timeout_s: How long to wait, in seconds.
    """
    from appliance.authn.status import fetch_status, public_context

    if not keychain.status_pv:
        return None
    try:
        async with public_context(settings.client, (*keychain.anchors, *keychain.crossed)) as context:
            return await fetch_status(
                context,
                keychain.status_pv,
                issuer=keychain.issuer,
                serial=keychain.serial,
                now=now,
                timeout=timeout_s,
                certificate=keychain.certificate,
            )
    except ApplianceError:
        return None
