"""TLS 1.3 without sockets: ciphertext in, plaintext out, and the reverse.

The caller sends the outgoing bytes: after every call that may have produced some, whether it raised or not,
``data_to_send()`` returns them. After a failed handshake they include the alert that tells the peer why.
"""

from __future__ import annotations

from cryptography import x509
from OpenSSL import SSL

from appliance.certs.keychain import Keychain
from appliance.errors import LocalProtocolError, TLSError
from appliance.pvdata.primitives import Buffer
from appliance.tls.context import HandshakeNotes, TLSContext, certificate_der, verified_chain
from appliance.tls.reasons import explain_error, explain_verification

__all__ = ["TLSEngine"]

_RECORD = 16384
_READ = 65536
_SLICE = 65536
"""Plaintext is encrypted in slices of this size, each taken out of OpenSSL before the next: the memory BIO stays in the
processor's cache, and no piece is so large that it is mapped and unmapped each time. 8 MB between two processes over
loopback took 5.8 ms this way, 7.6 ms in slices of 256 KiB, 2.8 ms without TLS.
"""
_SLICE_CIPHERTEXT = _SLICE + 4096
MAX_EARLY = 1 << 20
"""Most bytes that `TLSEngine.send` keeps until the handshake is complete."""


class TLSEngine:
    """One TLS connection.

    A client calls `start` first. Then bytes from the network go into `receive_data`, the network's end into `receive_eof`, and
    the bytes of `data_to_send` go out.
    """

    __slots__ = (
        "_closed",
        "_connection",
        "_context",
        "_early",
        "_early_size",
        "_failure",
        "_notes",
        "_out",
        "_pending",
        "eof",
        "handshake_complete",
    )

    def __init__(self, context: TLSContext, server_side: bool) -> None:
        if context.server_side != server_side:
            msg = f"a {'client' if server_side else 'server'} context was given to a {'server' if server_side else 'client'} engine"
            raise LocalProtocolError(msg)
        self._context = context
        self._notes = HandshakeNotes()
        self._connection = SSL.Connection(context.ssl, None)
        self._connection.set_app_data(self._notes)
        if server_side:
            self._connection.set_accept_state()
        else:
            self._connection.set_connect_state()
            if context.want_staple:
                self._connection.request_ocsp()
        self._early: list[bytes] = []
        self._early_size = 0
        self._out: list[bytes] = []
        self._pending = False
        self._failure: TLSError | None = None
        self._closed = False
        self.handshake_complete = False
        """Whether both ends have proved their identity; only from then on is anything decrypted or sent."""
        self.eof = False
        """Whether the peer has closed its side in an orderly way (close_notify)."""

    # ------------------------------------------------------------------ bytes from the network

    def start(self) -> None:
        """Begin the handshake: a client's first message is then in `data_to_send`."""
        self._handshake()

    def receive_data(self, data: Buffer) -> list[bytes]:
        """Decrypt what has arrived, and continue the handshake.

        What came after the peer's close_notify is dropped.

        Returns:
            The plaintext in chunks, possibly none.

        Raises:
            TLSError: The handshake failed, a record is not acceptable or the peer sent a fatal alert. Every further call raises
                it again.
        """
        if self._failure is not None:
            raise self._failure
        if not data or self.eof:
            return []
        self._connection.bio_write(data)
        if not self.handshake_complete and not self._handshake():
            return []
        chunks: list[bytes] = []
        receive, keep = self._connection.recv, chunks.append
        try:
            while True:
                keep(receive(_RECORD))
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            self.eof = True
        except SSL.Error as exc:
            raise self._fail(exc) from exc
        # A KeyUpdate of the peer may have been answered.
        self._pending = True
        return chunks

    def receive_eof(self) -> None:
        """Take note that the network connection has ended.

        Raises:
            TLSError: The peer did not close in an orderly way, so somebody may have cut off what it sent last.
        """
        if self._failure is not None:
            raise self._failure
        if self.eof:
            return
        if self.handshake_complete:
            why = "the connection ended without TLS's close_notify: what the peer sent last may be missing"
        else:
            why = "the peer ended the connection during the TLS handshake; it may not speak TLS 1.3, or its log tells why"
        self._failure = TLSError(why)
        raise self._failure

    def _handshake(self) -> bool:
        self._pending = True
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            return False
        except SSL.Error as exc:
            raise self._fail(exc) from exc
        self.handshake_complete = True
        early, self._early, self._early_size = self._early, [], 0
        for data in early:
            self.send(data)
        return True

    def _fail(self, error: SSL.Error) -> TLSError:
        if self._notes.refusal is not None:
            why = f"the stapled status of the peer's certificate was refused: {self._notes.refusal}"
        elif self._notes.verification is not None:
            code, subject = self._notes.verification
            why = explain_verification(code, subject, server_side=self._context.server_side)
        else:
            why = explain_error(error)
        self._failure = TLSError(why)
        self._early.clear()
        self._pending = True
        return self._failure

    # ------------------------------------------------------------------ bytes to the network

    def send(self, data: Buffer) -> None:
        """Encrypt ``data``. Before the handshake is complete it is kept, up to 1 MiB.

        One record costs about two microseconds at any size, so join small messages first.

        Raises:
            TLSError: The connection has failed.
            LocalProtocolError: The connection was closed with `close`, or too much is kept.
        """
        if self._failure is not None:
            raise self._failure
        if self._closed:
            msg = "data was sent on a TLS connection that this end has closed"
            raise LocalProtocolError(msg)
        if not self.handshake_complete:
            self._early_size += len(data) if not isinstance(data, memoryview) else data.nbytes
            if self._early_size > MAX_EARLY:
                msg = f"more than {MAX_EARLY} bytes were sent before the TLS handshake was complete"
                raise LocalProtocolError(msg)
            self._early.append(bytes(data))
            return
        if not data:
            return
        self._pending = True
        try:
            if len(data) <= _RECORD and not isinstance(data, memoryview):
                self._connection.send(data)
                return
            view = memoryview(data).cast("B")
            for start in range(0, len(view), _SLICE):
                self._connection.send(view[start : start + _SLICE])
                self._out.append(self._connection.bio_read(_SLICE_CIPHERTEXT))
        except SSL.Error as exc:
            raise self._fail(exc) from exc

    def chunks_to_send(self) -> list[bytes]:
        """Return what must be sent now, in pieces, for a gathering write."""
        out, self._out = self._out, []
        if self._pending:
            self._pending = False
            read, keep = self._connection.bio_read, out.append
            try:
                while True:
                    data = read(_READ)
                    keep(data)
                    if len(data) < _READ:
                        break
            except SSL.WantReadError:
                pass
        return out

    def data_to_send(self) -> bytes:
        """Return what must be sent now, in one piece; empty if there is nothing."""
        chunks = self.chunks_to_send()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def close(self) -> None:
        """Queue close_notify: this end sends no more. May be called again, or after a failure."""
        if self._closed or self._failure is not None:
            self._closed = True
            return
        self._closed = True
        if not self.handshake_complete:
            return
        self._pending = True
        try:
            self._connection.shutdown()
        except SSL.Error as exc:
            self._fail(exc)

    # ------------------------------------------------------------------ who and what

    @property
    def failure(self) -> TLSError | None:
        """Why the connection cannot go on."""
        return self._failure

    @property
    def server_side(self) -> bool:
        """Whether this is the server's end."""
        return self._context.server_side

    @property
    def keychain(self) -> Keychain:
        """This end's own keychain."""
        return self._context.keychain

    @property
    def peer_certificate_der(self) -> bytes | None:
        """The peer's verified certificate; ``None`` before the handshake is complete or when it sent none."""
        chain = self.peer_chain_der
        return chain[0] if chain else None

    @property
    def peer_chain_der(self) -> tuple[bytes, ...]:
        """The verified chain from the peer's certificate up to the trust anchor."""
        return tuple(certificate_der(certificate) for certificate in self.peer_chain)

    @property
    def peer_chain(self) -> tuple[x509.Certificate, ...]:
        """The verified chain from the peer's certificate up to the trust anchor, parsed.

        Raises:
            CertificateError: OpenSSL reads a certificate of it but this program cannot.
        """
        if not self.handshake_complete:
            return ()
        return verified_chain(self._connection)

    @property
    def peer_staple(self) -> bytes | None:
        """The OCSP response that the server stapled; not verified unless the context has a ``check_staple``."""
        return self._notes.staple

    @property
    def cipher(self) -> str:
        """Name of the cipher suite, empty before the handshake is complete."""
        return (self._connection.get_cipher_name() or "") if self.handshake_complete else ""

    @property
    def group(self) -> str:
        """Name of the key exchange group, empty before the handshake is complete."""
        return (self._connection.get_group_name() or "") if self.handshake_complete else ""

    @property
    def version(self) -> str:
        """``TLSv1.3``; empty before the handshake is complete."""
        return self._connection.get_protocol_version_name() if self.handshake_complete else ""

    @property
    def alpn(self) -> str:
        """The agreed application protocol, empty if there is none."""
        return self._connection.get_alpn_proto_negotiated().decode("ascii", "replace")
