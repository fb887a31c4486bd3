"""Where tokens come from: a file, standard input, a command or an identity provider.

The token itself never stands on a command line or in a variable, where every user of the machine can read it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import shlex
import signal
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final, Protocol

from appliance.authn.jwt.requester import read_token, shown_date, token_source
from appliance.authn.jwt.token import MAX_TOKEN_BYTES, Token, clean, parse
from appliance.certs.status import format_date
from appliance.errors import ConfigurationError, TokenRefused, TokenUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from appliance.authn.jwt.oauth import OAuthClient

__all__ = ["CommandSource", "FileSource", "OAuthSource", "StdinSource", "TokenSource", "open_source"]

COMMAND_TIMEOUT_S: Final = 30.0
_MAX_LOG_LINES: Final = 20
_MAX_STDERR: Final = 16 * 1024
_REMEMBERED: Final = 64
"""Tokens that were sent, per source. A file holds one at a time, so a few are enough."""
_LOOKS_LIKE_TOKEN: Final = re.compile(r"eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
_log = logging.getLogger(__name__)


class TokenSource(Protocol):
    """Gives tokens, one for each request."""

    @property
    def name(self) -> str:
        """Where the tokens come from, for messages."""

    async def fetch(self, *, better_than: datetime | None = None) -> Token:
        """Return a token that may be sent.

        Args:
            better_than: The token must end after this instant; one that ends earlier would renew nothing.

        Raises:
            TokenUnavailable: There is none at present; the error says when to try again.
            ConfigurationError: The source cannot be read.
            SecurityError: What it holds is no token.
        """

    def sent(self, token: Token) -> None:
        """Remember that the service answered a request with this token, which it refuses from now on."""

    async def close(self) -> None:
        """Give back what the source holds."""


class _Sent:
    """The tokens that were sent. Only hashes are kept."""

    def __init__(self) -> None:
        self._hashes: OrderedDict[bytes, None] = OrderedDict()

    @staticmethod
    def _hash(token: Token) -> bytes:
        jti = token.claims.get("jti")
        # The identifier is what the service remembers; without one, it is the text.
        name = f"{token.issuer} {jti}" if isinstance(jti, str) and jti else token.text
        return hashlib.sha256(name.encode("utf-8")).digest()

    def add(self, token: Token) -> None:
        self._hashes[self._hash(token)] = None
        while len(self._hashes) > _REMEMBERED:
            self._hashes.popitem(last=False)

    def check(self, token: Token, *, better_than: datetime | None, where: str) -> None:
        """Raise TokenUnavailable for a token that would bring nothing."""
        if self._hash(token) in self._hashes:
            raise TokenUnavailable(f"{where} still gives the token that was used already", kind="none")
        ends = token.claims.get("exp")
        if (
            better_than is not None
            and isinstance(ends, int)
            and not isinstance(ends, bool)
            and ends <= better_than.timestamp()
        ):
            raise TokenUnavailable(
                f"{where} gives a token that ends at {shown_date(ends)}; one that ends after {format_date(better_than)} is needed",
                kind="none",
            )


class FileSource:
    """A file that somebody else refreshes. It is read again only if it has changed.

    Args:
        path: The file.
        say: Gets warnings about its permissions.
    """

    def __init__(self, path: str, say: Callable[[str], None]) -> None:
        self._path = path
        self._say = say
        self._warned: set[str] = set()
        self._sent = _Sent()
        self._seen: tuple[int, int, int] | None = None
        self._token: Token | None = None

    @property
    def name(self) -> str:
        """The file."""
        return self._path

    async def fetch(self, *, better_than: datetime | None = None) -> Token:
        """Return the file's token: see `TokenSource.fetch`."""
        try:
            status = os.stat(self._path)  # noqa: PTH116 - start-up time
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        except (OSError, ValueError):
            seen = None  # the read below says why
        if self._token is None or seen is None or seen != self._seen:
            self._token = None
            self._token = read_token(self._path, self._warn)
            self._seen = seen
        self._sent.check(self._token, better_than=better_than, where=self._path)
        return self._token

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._say(text)

    def sent(self, token: Token) -> None:
        """Remember a token that was sent."""
        self._sent.add(token)

    async def close(self) -> None:
        """Do nothing: the file is not kept open."""


class StdinSource:
    """Standard input: one token, once. It has no second one, so a daemon cannot use it."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    @property
    def name(self) -> str:
        """The name of the source."""
        return "standard input"

    async def fetch(self, *, better_than: datetime | None = None) -> Token:
        """Return the token: see `TokenSource.fetch`."""
        token = read_token("-", self._say)
        _Sent().check(token, better_than=better_than, where=self.name)
        return token

    def sent(self, token: Token) -> None:
        """Do nothing: nobody can fetch twice."""

    async def close(self) -> None:
        """Do nothing: standard input is not ours."""


class CommandSource:
    """A program that prints a token. It is started for each token, without a shell.

    Args:
        command: The program and its arguments, quoted as for a POSIX shell.
        timeout_s: Seconds after which the program is ended.

    Raises:
        ConfigurationError: The text is no command line, or holds a token.
    """

    def __init__(self, command: str, *, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        try:
            self._command = shlex.split(command)
        except ValueError as error:
            raise ConfigurationError(f"--token-command: not a command line: {error}") from None
        if not self._command:
            raise ConfigurationError("--token-command: names no program")
        if _LOOKS_LIKE_TOKEN.search(command):
            raise ConfigurationError(
                "--token-command: other users can read a token on the command line; treat it as exposed, and have the "
                "program read it from a file"
            )
        self._timeout_s = timeout_s
        self._sent = _Sent()

    @property
    def name(self) -> str:
        """The program, without its arguments."""
        return self._command[0]

    async def fetch(self, *, better_than: datetime | None = None) -> Token:
        """Run the program and return what it prints: see `TokenSource.fetch`."""
        text = await self._run()
        try:
            token = parse(text)
        except TokenRefused as error:
            # From None: the chain of exceptions would contain the text of the token.
            raise TokenUnavailable(
                f"the output of {self.name} is no usable JSON Web Token ({error.reason.replace('_', ' ')}); it must print the "
                "token and nothing else",
                kind="refused",
            ) from None
        self._sent.check(token, better_than=better_than, where=self.name)
        return token

    async def _run(self) -> str:
        # The service manager's notices are ours alone.
        environ = {name: value for name, value in os.environ.items() if name not in _OURS}
        try:
            child = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
                env=environ,
            )
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or "not a command"
            raise TokenUnavailable(f"{self.name} cannot be started: {reason}", kind="refused") from None
        try:
            async with asyncio.timeout(self._timeout_s):
                out, said, status = await asyncio.gather(
                    _bounded(child.stdout, MAX_TOKEN_BYTES + 1024),
                    _bounded(child.stderr, _MAX_STDERR),
                    child.wait(),
                )
        except TimeoutError:
            raise TokenUnavailable(f"{self.name} printed no token within {self._timeout_s:.0f} s") from None
        finally:
            # The whole group: a program that it started may go on.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
        for line in said.decode("utf-8", "replace").splitlines()[:_MAX_LOG_LINES]:
            _log.warning("%s: %s", self.name, clean(_LOOKS_LIKE_TOKEN.sub("<token>", line)))
        if status:
            how = f"exit status {status}" if status > 0 else f"signal {-status}"
            raise TokenUnavailable(f"{self.name} failed ({how}); its messages are in the log")
        if len(out) > MAX_TOKEN_BYTES:
            raise TokenUnavailable(
                f"{self.name} prints more than {MAX_TOKEN_BYTES} bytes, so it is no token", kind="refused"
            )
        return out.decode("ascii", "replace").strip()

    def sent(self, token: Token) -> None:
        """Remember a token that was sent."""
        self._sent.add(token)

    async def close(self) -> None:
        """Do nothing: the program runs only during `fetch`."""


_OURS: Final = frozenset(("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"))


async def _bounded(stream: asyncio.StreamReader | None, limit: int) -> bytes:
    """Read a stream to its end and return its first `limit` bytes."""
    kept = bytearray()
    while stream is not None and (chunk := await stream.read(16384)):
        kept += chunk[: max(limit - len(kept), 0)]
    return bytes(kept)


class OAuthSource:
    """An OAuth 2.0 identity provider."""

    def __init__(self, client: OAuthClient) -> None:
        self._client = client
        self._sent = _Sent()

    @property
    def name(self) -> str:
        """The provider."""
        return self._client.name

    async def fetch(self, *, better_than: datetime | None = None) -> Token:
        """Ask the provider for a token: see `TokenSource.fetch`."""
        text = await self._client.token()
        try:
            token = parse(text)
        except TokenRefused as error:
            raise TokenUnavailable(
                f"{self.name} gives a token that cannot be used ({error.reason.replace('_', ' ')})",
                kind="refused",
            ) from None
        self._sent.check(token, better_than=better_than, where=self.name)
        return token

    def sent(self, token: Token) -> None:
        """Remember a token that was sent."""
        self._sent.add(token)

    async def close(self) -> None:
        """Close the connections to the provider."""
        await self._client.close()


def open_source(
    *,
    token_file: str | None,
    token_command: str | None,
    oauth: str | None,
    keychain: str,
    environ: Mapping[str, str],
    say: Callable[[str], None],
) -> TokenSource:
    """Return the source that the command line names, or the variable EPICS_AUTH_JWT_FILE if it names none.

    Args:
        token_file: ``--token-file``: a path, or ``-``.
        token_command: ``--token-command``.
        oauth: ``--oauth``: a file as `OAuthSettings` describes it.
        keychain: The keychain that the tokens are for. A refresh token is kept beside it.
        environ: The environment.
        say: Gets what a person must read.

    Raises:
        ConfigurationError: No source or more than one was named, or it cannot be used.
    """
    named = {"--token-file": token_file, "--token-command": token_command, "--oauth": oauth}
    given = [option for option, value in named.items() if value]
    if len(given) > 1:
        raise ConfigurationError(f"{' and '.join(given)}: name one source of tokens only")
    if token_command:
        return CommandSource(token_command)
    if oauth:
        from appliance.daemon.extras import require

        require("oauth")
        from appliance.authn.jwt.oauth import OAuthClient, load_settings

        return OAuthSource(
            OAuthClient(load_settings(oauth, environ), refresh_file=f"{keychain}.refresh", say=say)
        )
    path = token_source(token_file, environ)
    return StdinSource(say) if path == "-" else FileSource(path, say)
