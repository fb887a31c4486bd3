"""Proof that the requester of a certificate holds the private key: a signature over the whole request.

It is sent as the text ``proof`` in the request's ``verifier`` structure, beside the authenticator's own fields:
``<version>.<POSIX seconds>.<signature in base64url>``. No other known implementation sends it; the others ignore it.
Version 2 signs the schedule and the alternative names, too. A request that has neither is signed with version 1, which older
services know.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes, PrivateKeyTypes

from appliance.certs.public_keys import has_signed, sign
from appliance.certs.san import San
from appliance.certs.schedule import Window
from appliance.errors import CertificateError

__all__ = ["MAX_PROOF", "PROOF_FIELD", "UsedProofs", "check_proof", "made_at", "make_proof"]

PROOF_FIELD: Final = "proof"
"""The name of the field in the ``verifier`` structure."""
MAX_PROOF: Final = 2048
"""Longest proof in characters. An RSA signature of 8192 bits takes 1366."""
FRESH_S: Final = 900
"""Seconds for which a proof is valid, so that a recorded proof is soon useless."""
_CONTEXT: Final = b"EPICS SPVA certificate creation request, proof %d\0"
_VERSIONS: Final = {"1": 1, "2": 2}


class ProvableRequest(Protocol):
    """The parts of a request that are signed. The requester's and the service's form of it both have them."""

    @property
    def type(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def country(self) -> str: ...
    @property
    def organization(self) -> str: ...
    @property
    def organizational_unit(self) -> str: ...
    @property
    def usage(self) -> str: ...
    @property
    def not_before(self) -> int: ...
    @property
    def not_after(self) -> int: ...
    @property
    def pub_key(self) -> str: ...
    @property
    def config_uri_base(self) -> str: ...
    @property
    def no_status(self) -> bool: ...
    @property
    def schedule(self) -> Sequence[Window]: ...
    @property
    def time_zone(self) -> str: ...
    @property
    def san(self) -> Sequence[San]: ...


_MOST_USED: Final = 100_000
_AGAIN_S: Final = 15.0
"""For so long the same request may come again. Who asks twice in one second signs the same twice. Whose answer was lost sends the
same again and again, until it is known that the node is dead or has had its time (docs/decisions/0105): ten seconds.
"""


class UsedProofs:
    """The proofs of the last requests, so that each counts once: a recorded request renews nothing when it is sent later.

    They are told apart by what they sign and not by their signatures, because one message can have several of these. The
    memory ends with the process.
    """

    def __init__(self, most: int = _MOST_USED) -> None:
        self._most = most
        self._seen: OrderedDict[bytes, float] = OrderedDict()

    def first_use(self, message: bytes, now: float) -> bool:
        """Whether a message was not seen before, or only in the last seconds; it is seen from now on."""
        digest = hashlib.sha256(message).digest()
        seen = self._seen.setdefault(digest, now)
        # The oldest give way first, whatever the clock says: it may be set back.
        while len(self._seen) > self._most:
            self._seen.popitem(last=False)
        return abs(now - seen) <= _AGAIN_S


def _needs(request: ProvableRequest) -> int:
    """Return the version of the proof that signs all of a request."""
    return 2 if request.schedule or request.time_zone or request.san else 1


def _message(request: ProvableRequest, token: str, made: int, version: int) -> bytes:
    texts: list[str] = [
        request.type, request.name, request.country, request.organization, request.organizational_unit, request.usage,
        str(request.not_before), str(request.not_after), request.pub_key, request.config_uri_base,
        "no status" if request.no_status else "", token, str(made),
    ]  # fmt: skip
    if version > 1:
        texts += (request.time_zone, str(len(request.schedule)), str(len(request.san)))
        texts += (str(part) for entry in (*sorted(request.schedule), *sorted(request.san)) for part in entry)
    parts = [text.encode("utf-8", "surrogatepass") for text in texts]
    # Each has its length in front. Otherwise text could move from one field into the next.
    return _CONTEXT % version + b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def make_proof(request: ProvableRequest, key: PrivateKeyTypes, *, made: int, token: str = "") -> str:
    """Return the proof for a request; ``made`` is the present time in POSIX seconds.

    Raises:
        CertificateError: The certificate or key is not acceptable; the text says why.
    """
    version = _needs(request)
    signature = sign(key, _message(request, token, made, version))
    return f"{version}.{made}.{base64.urlsafe_b64encode(signature).decode('ascii')}"


def made_at(proof: str) -> int:
    """Return when a proof that `check_proof` has accepted was made, by the requester's clock (POSIX seconds)."""
    return int(proof.split(".", 2)[1])


def check_proof(
    proof: str,
    request: ProvableRequest,
    key: CertificatePublicKeyTypes,
    *,
    now: float,
    token: str = "",
    used: UsedProofs | None = None,
) -> bool:
    """Whether the requester has proved that it holds the private half of ``key``.

    The result is False for no proof, for another version of it, for one that leaves a part of the request out, for one that is
    in ``used`` already, and for one that is too old or too new: a wrong clock is not an attack, and the request counts as one
    of another implementation.

    Raises:
        CertificateError: The proof is false or cannot be read.
    """
    written, _, rest = proof.partition(".")
    version = _VERSIONS.get(written, 0)
    if version < _needs(request):
        return False
    text, _, encoded = rest.partition(".")
    if not (text.isascii() and text.isdecimal() and len(text) <= 12) or len(proof) > MAX_PROOF:
        raise CertificateError("the proof that the requester holds the private key cannot be read; ask again")
    try:
        signature = base64.b64decode(encoded, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        signature = b""
    made = int(text)
    message = _message(request, token, made, version)
    if not has_signed(key, signature, message):
        raise CertificateError(
            "the proof that the requester holds the private key is false: the request was changed on its way, or the key "
            "belongs to somebody else; ask again"
        )
    return abs(now - made) <= FRESH_S and (used is None or used.first_use(message, now))
