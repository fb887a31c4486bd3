"""What ``tls_required`` means for whoever has no keychain; imported by plain tools, so nothing of TLS is imported here."""

from __future__ import annotations

from typing import Final

from appliance.config.tls_options import TLSOptions
from appliance.errors import KeychainError

__all__ = ["TLS_REQUIRED", "check_keychain_set"]

TLS_REQUIRED: Final = "plain TCP is refused, as tls_required among the TLS options asks for"


def check_keychain_set(options: TLSOptions, keychain: str, variable: str) -> None:
    """Raise KeychainError where TLS is required and no keychain is configured; ``variable`` would name one."""
    if options.tls_required and not keychain:
        raise KeychainError(
            f"there is no keychain, and {TLS_REQUIRED}; set {variable} to a keychain, or have one made by "
            "authnstd or authnjwt"
        )
