"""Let an authority's key sign, wherever it is, without stopping the event loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Final

from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from appliance.certs.signer import KeySigner, Signer
from appliance.certs.x509 import UNREADABLE
from appliance.cms.pkcs11 import TokenSigner
from appliance.config.files import read_private
from appliance.config.pkcs11_uri import PKCS11URI, parse_pkcs11_uri
from appliance.config.secret import Secret
from appliance.errors import ConfigurationError

__all__ = ["UNREACHABLE", "check_key_settings", "is_key_of", "open_signer", "signed", "trouble_of", "try_pin"]

UNREACHABLE: Final = "the authority's key cannot be reached; the service's log says why"
"""What anybody may know of a signer's trouble. Which token it is, and what it says of its PIN, is for the log."""
_MOST_OF_A_KEY: Final = 1 << 16
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


def check_key_settings(ca_key: str, pin: Secret) -> PKCS11URI | None:
    """Return which key in which token ``ca_key`` asks for; None if it names a file.

    Raises:
        ConfigurationError: It cannot be used, or there are two PINs.
    """
    if ca_key.startswith("/"):
        return None
    uri = parse_pkcs11_uri(ca_key)
    if uri.pin_source and pin.source:
        raise ConfigurationError(
            "the PIN is given twice: by ca_key_pin and by pin-source in ca_key; leave one of them",
            key="ca_key_pin",
        )
    return uri


def open_signer(
    ca_key: str, pin: Secret, *, public_key: CertificatePublicKeyTypes | None = None
) -> TokenSigner | KeySigner:
    """Open the authority's key: connect to its token, or read its file.

    Args:
        ca_key: The setting.
        pin: The setting ``ca_key_pin``.
        public_key: That of the authority's certificate; None: read it from the token.

    Raises:
        ConfigurationError: A setting or the file cannot be used.
        SecurityError: The key cannot be used; the text says why and what to do.
    """
    uri = check_key_settings(ca_key, pin)
    if uri is not None:
        return TokenSigner(uri, _pin(uri, pin), public_key=public_key)
    data = read_private(ca_key, _MOST_OF_A_KEY).data
    try:
        key = load_pem_private_key(data, pin.reveal().encode() or None)
    except UNREADABLE as error:
        raise ConfigurationError(
            f"holds no private key in PEM form that can be read with ca_key_pin: {error}", file=ca_key
        ) from error
    signer = KeySigner(key)  # type: ignore[arg-type]
    if public_key is not None and signer.public_key() != public_key:
        raise ConfigurationError("its key is not that of the certificate in ca_certificate", file=ca_key)
    return signer


def trouble_of(present: Signer, *former: Signer) -> str:
    """Return what anybody may know of signers that cannot be reached; empty if none is.

    Args:
        present: The authority's that issues.
        former: Those of authorities that only sign statuses.
    """
    if present.trouble:
        return UNREACHABLE
    of_former = "a former authority's key cannot be reached; the service's log says why"
    return of_former if any(each.trouble for each in former) else ""


def is_key_of(signer: Signer, ca_key: str) -> bool:
    """Whether a signer is the key in a token that ``ca_key`` names."""
    return (
        isinstance(signer, TokenSigner)
        and not ca_key.startswith("/")
        and signer.uri == parse_pkcs11_uri(ca_key)
    )


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
