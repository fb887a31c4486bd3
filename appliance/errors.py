"""Every error that this package raises on purpose.

::

    ApplianceError
    |-- ConfigurationError          a setting cannot be used; says file, line, key and why
    |-- PVDataError                 a type or a value does not fit (also a ValueError)
    |   `-- PVRequestError          a pvRequest cannot be parsed or selects nothing
    |-- ProtocolError               bytes or calls that PVAccess does not allow
    |   |-- RemoteProtocolError     the peer broke the protocol: the connection must close
    |   |   `-- DecodeError         bytes that are not what they claim to be
    |   `-- LocalProtocolError      our own caller broke the protocol: a bug above this layer
    |-- OperationError              an operation on a PV did not succeed
    |   |-- RemoteError             the server answered with an error; carries its text
    |   |-- AccessDeniedError       the server's access security refused the operation
    |   |-- ChannelClosedError      the channel or its connection went away before the answer
    |   `-- OperationTimeoutError   no answer in the time allowed (also a TimeoutError)
    |-- TransportError              a socket could not be opened, bound or kept
    |-- DatabaseLost                the database server cannot be reached at present
    |-- SecurityError               TLS, keychains, certificates
    |   |-- TLSError                a handshake failed or a TLS record was not acceptable
    |   |-- KeychainError           a PKCS#12 file cannot be read, written or used
    |   |-- CertificateError        an X.509 certificate is not acceptable
    |   |-- CertificateStatusError  an OCSP answer is not acceptable
    |   |-- SigningError            a private key did not sign: its token is gone, or refuses
    |   |-- TokenRefused            a bearer token proves nothing: reason for the audit, one sentence for the sender
    |   `-- TokenUnavailable        a source has no token at present; says when to try again
    |-- RequestRefused              a service does not do what was asked; nothing has changed
    `-- AccessFileError             an access security or pvlist file is wrong; says line and column

Anything else that escapes this package is a defect in it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

__all__ = [
    "AccessDeniedError",
    "AccessFileError",
    "ApplianceError",
    "CertificateError",
    "CertificateStatusError",
    "ChannelClosedError",
    "ConfigurationError",
    "DatabaseLost",
    "DecodeError",
    "KeychainError",
    "LocalProtocolError",
    "OperationError",
    "OperationTimeoutError",
    "PVDataError",
    "PVRequestError",
    "ProtocolError",
    "RemoteError",
    "RemoteProtocolError",
    "RequestRefused",
    "SecurityError",
    "SigningError",
    "TLSError",
    "TokenRefused",
    "TokenUnavailable",
    "TransportError",
]


def internal_error(log: str = "the server's log") -> str:
    """Return what is told of a defect to those who are not shown where it happened.

    Args:
        log: where that is written.
    """
    return f"internal error; {log} has the details"


class ApplianceError(Exception):
    """Root of the tree; its text is one sentence that is fit for an operator.

    Example:
        >>> try:
        ...     await ctx.get("no:such:pv", timeout=0.1)
        ... except ApplianceError as error:
        ...     print(error)
        no:such:pv: timeout after 0.1 s: ...
    """


class ConfigurationError(ApplianceError):
    """A setting cannot be used.

    The text reads ``file:line: key: why``, without the parts that are not known.
    """

    def __init__(
        self, why: str, *, file: str | None = None, line: int | None = None, key: str | None = None
    ) -> None:
        self.why = why
        """The reason."""
        self.file = file
        """The configuration file; None if there is none."""
        self.line = line
        """The line in it; None if it is not known."""
        self.key = key
        """The setting or the variable."""
        where = "" if file is None else f"{file}: " if line is None else f"{file}:{line}: "
        super().__init__(f"{where}{'' if key is None else f'{key}: '}{why}")


class PVDataError(ApplianceError, ValueError):
    """A type or a value does not fit."""


class PVRequestError(PVDataError):
    """A pvRequest cannot be parsed or selects nothing."""


class ProtocolError(ApplianceError):
    """Bytes or calls that PVAccess does not allow."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol; the only safe answer is to close the connection."""


class DecodeError(RemoteProtocolError):
    """Bytes that are not what they claim to be: truncated, oversize or of an unknown form."""


class LocalProtocolError(ProtocolError):
    """The caller on our own side broke the protocol: a defect above the protocol layer."""


class OperationError(ApplianceError):
    """An operation on a PV did not succeed."""


class RemoteError(OperationError):
    """The server answered with an error Status; the text is the server's."""


class AccessDeniedError(RemoteError):
    """The server's access security refused the operation."""


class ChannelClosedError(OperationError):
    """The channel or its connection went away before the answer came."""


class OperationTimeoutError(OperationError, TimeoutError):
    """No answer came in the time allowed."""


class TransportError(ApplianceError):
    """A socket could not be opened, bound or kept."""


class DatabaseLost(ApplianceError):  # noqa: N818 - it may come back at any time, so it is no malfunction
    """The database server cannot be reached at present, or is not the one that takes writes."""


class SecurityError(ApplianceError):
    """TLS, keychains and certificates."""


class TLSError(SecurityError):
    """A handshake failed or a TLS record was not acceptable."""


class KeychainError(SecurityError):
    """A PKCS#12 file cannot be read, written or used."""


class CertificateError(SecurityError):
    """An X.509 certificate is not acceptable."""


class CertificateStatusError(SecurityError):
    """An OCSP answer is not acceptable: wrong signer, wrong certificate, or out of its validity."""


class SigningError(SecurityError):
    """A private key did not sign: the token that holds it is gone, locked, or refuses."""


class RequestRefused(ApplianceError):  # noqa: N818 - a decision, not a malfunction
    """A service does not do what was asked; nothing has changed. The text tells the sender what to do."""


class TokenRefused(SecurityError):  # noqa: N818 - a judgement with two readers, not a malfunction
    """A bearer token does not prove the identity that it claims.

    The token itself is never part of the exception.

    Args:
        reason: A stable code for the audit log, which a program can read.
        public: The one sentence that the sender may see: it tells an honest user what to do and an attacker nothing.
        facts: What is known of the token (iss, sub, kid, a hash of jti), cleaned for logs.
    """

    def __init__(
        self, reason: str, public: str = "the token was refused", *, facts: dict[str, str] | None = None
    ) -> None:
        self.reason = reason
        """The code for the audit log."""
        self.public = public
        """What the sender may see."""
        self.facts: dict[str, str] = {} if facts is None else facts
        """What is known of the token."""
        super().__init__(public)


class TokenUnavailable(SecurityError):  # noqa: N818 - it may come later, so it is no malfunction
    """A source of tokens has no usable token at present.

    Args:
        why: The text of the error.
        kind: What to do: ``none`` (a better token may come at any time: look again soon), ``unreachable`` (try again,
            ever more slowly), ``limited`` (try again after ``retry_s``) or ``refused`` (somebody has to change something).
        retry_s: Seconds after which to try again.
        code: The identity provider's own code of the error (RFC 6749 section 5.2), if it gave one.
    """

    def __init__(
        self,
        why: str,
        *,
        kind: Literal["none", "unreachable", "limited", "refused"] = "unreachable",
        retry_s: float = 0.0,
        code: str = "",
    ) -> None:
        self.kind = kind
        """What to do."""
        self.retry_s = retry_s
        """Seconds after which to try again."""
        self.code = code
        """The identity provider's code of the error."""
        super().__init__(why)


class AccessFileError(ApplianceError):
    """An access security or pvlist file is wrong; the text reads ``file:line:column: why``."""

    def __init__(
        self, why: str, *, file: str | None = None, line: int | None = None, column: int | None = None
    ) -> None:
        self.why = why
        """The reason."""
        self.file = file
        """The file; None if it is not known."""
        self.line = line
        """The line in it."""
        self.column = column
        """The column in that line."""
        where = ":".join(str(part) for part in (file, line, column) if part is not None)
        super().__init__(f"{where}: {why}" if where else why)
