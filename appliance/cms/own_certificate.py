"""The certificate of the service itself: what its peers see of this node, and its replacement while it serves."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from appliance.certs.keychain import Keychain
from appliance.certs.public_keys import key_identity
from appliance.cms.config import CMSSettings
from appliance.cms.issuing import Issuing
from appliance.cms.model import shown_time
from appliance.cms.pvs import Tasks
from appliance.cms.setup import ensure_own_keychain, outlives, renew_own_keychain
from appliance.cms.signing import UNREACHABLE
from appliance.config.pva import ServerConfig
from appliance.errors import ApplianceError, SigningError

if TYPE_CHECKING:
    from appliance.tls.context import TLSContext

__all__ = ["OwnCertificate"]

_log: Final = logging.getLogger(__name__)
_AGAIN_S: Final = 3600.0
"""Seconds after which a renewal that failed is tried again. It begins a week before the end."""


async def _nothing() -> None:
    """Do nothing."""


class OwnCertificate:
    """The service's own keychain.

    Args:
        settings: Returns the present settings.
        server: Names the file.
        issuing: Signs it.
        tasks: Where a renewal runs, beside everything else.
    """

    def __init__(
        self, settings: Callable[[], CMSSettings], server: ServerConfig, issuing: Issuing, tasks: Tasks
    ) -> None:
        self._settings = settings
        self._server = server
        self._issuing = issuing
        self._tasks = tasks
        self.keychain: Keychain | None = None
        """None until `ensure`."""
        self.on_new: Callable[[], Awaitable[None]] = _nothing
        """Called when it was replaced."""
        self.trouble = ""
        """Why it cannot be renewed, while that is so."""
        self._again_at = float("-inf")
        self._is_renewing = False
        self._key: tuple[Keychain, frozenset[str]] | None = None

    def ensure(self) -> None:
        """Read it, or make it.

        Raises:
            ApplianceError: It cannot be used, or cannot be made.
        """
        self.keychain = ensure_own_keychain(self._settings(), self._server, self._issuing)

    def keys(self) -> frozenset[str]:
        """Return its key, as `appliance.certs.public_keys.key_identity` tells it from others."""
        own = self.keychain
        if own is None or own.certificate is None:
            return frozenset()
        if self._key is None or self._key[0] is not own:
            # Asked for each request; the keychain changes once a year.
            self._key = own, frozenset({key_identity(own.certificate.public_key())})
        return self._key[1]

    def tls(self) -> TLSContext:
        """Return what a server needs to use it."""
        from appliance.tls.context import server_context

        assert self.keychain is not None
        required = self._server.tls_options.client_cert_required
        return server_context(self.keychain, require_client_cert=required)

    def look(self) -> None:
        """Begin to replace it if its end is near. Nothing waits for that: the key may be in a slow token."""
        if not self._is_renewing and time.monotonic() >= self._again_at and self._is_due():
            self._is_renewing = True
            self._tasks.start(None, self.renew())

    def _is_due(self) -> bool:
        if self.keychain is None or self._issuing.lifecycle.clock_fault():
            return False
        return not outlives(self.keychain, self._issuing)

    async def renew(self) -> None:
        """Replace it if its end is near. Existing connections stay up."""
        keychain = self.keychain
        if keychain is None or keychain.certificate is None or not self._is_due():
            self._is_renewing = False
            return
        try:
            self.keychain = await renew_own_keychain(self._settings(), self._server, self._issuing)
            await self.on_new()
        except ApplianceError as error:
            self._again_at = time.monotonic() + _AGAIN_S
            end = shown_time(keychain.certificate.not_valid_after_utc)
            said = f"the service's own certificate ends at {end} and cannot be renewed"
            _log.error("%s: %s", said, error)
            # HEALTH shows it to anybody, and what a token says is for the log.
            self.trouble = f"{said}: {UNREACHABLE if isinstance(error, SigningError) else error}"
        else:
            self.trouble = ""
            _log.info("the service's own certificate was renewed: %s", self._server.tls_keychain)
        finally:
            self._is_renewing = False
