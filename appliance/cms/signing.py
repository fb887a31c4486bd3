"""Let an authority's key sign, wherever it is, without stopping the event loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Final

from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from appliance.certs.signer import Signer
from appliance.cms.pkcs11 import TokenSigner
from appliance.config.pkcs11_uri import PKCS11URI, parse_pkcs11_uri
from appliance.config.secret import Secret
from appliance.errors import ConfigurationError

__all__ = ["check_key_settings", "open_token", "signed", "try_pin"]

_AT_ONCE: Final = 4
"""Signatures of a slow signer that are waited for at a time. The others wait for a thread."""


async def signed(signer: Signer, body: bytes) -> bytes:
    """Return the signature of ``body``: at once, or by a thread that waits for a slow signer.

    Raises:
        SigningError: The key cannot be reached, or does not sign.
    """
    if signer.is_quick:
        return signer.sign(body)
    return await asyncio.get_running_loop().run_in_executor(_threads(), signer.sign, body)


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_AT_ONCE, "signing")


def check_key_settings(ca_key: str, pin: Secret) -> PKCS11URI:
    """Return what ``ca_key`` asks for.

    Raises:
        ConfigurationError: It cannot be used, or there are two PINs.
    """
    uri = parse_pkcs11_uri(ca_key)
    if uri.pin_source and pin.source:
        raise ConfigurationError(
            "the PIN is given twice: by ca_key_pin and by pin-source in ca_key; leave one of them",
            key="ca_key_pin",
        )
    return uri


def open_token(
    ca_key: str, pin: Secret, *, public_key: CertificatePublicKeyTypes | None = None
) -> TokenSigner:
    """Connect to the token that holds the authority's key.

    Args:
        ca_key: The setting.
        pin: The setting ``ca_key_pin``.
        public_key: That of the authority's certificate; None: read it from the token.

    Raises:
        ConfigurationError: A setting cannot be used.
        SigningError: The key cannot be used; the text says why and what to do.
    """
    uri = check_key_settings(ca_key, pin)
    return TokenSigner(uri, _pin(uri, pin), public_key=public_key)


async def try_pin(signer: Signer, pin: Secret) -> None:
    """Let a token that refused its PIN try the present one, because an administrator says that it is right now.

    Args:
        signer: The authority's; another one than a token's has no PIN.
        pin: The setting ``ca_key_pin``.

    Raises:
        ConfigurationError: The file of the PIN cannot be read.
    """
    if isinstance(signer, TokenSigner):
        now = _pin(signer.uri, pin)
        await asyncio.get_running_loop().run_in_executor(_threads(), signer.try_pin, now)


def _pin(uri: PKCS11URI, pin: Secret) -> Secret:
    return Secret.first_line(uri.pin_source, setting="pin-source in ca_key") if uri.pin_source else pin
