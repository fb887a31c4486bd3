"""``authnjwt``: a keychain for the account in a JSON Web Token."""

from __future__ import annotations

import os
import sys

from appliance.cli.authn import authenticate, authn_parser, keep, run_authenticator
from appliance.cli.common import complain

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from cryptography import x509

    from appliance.authn.ccr import CertRequest
    from appliance.authn.jwt.sources import TokenSource
    from appliance.authn.live.keeper import Maker, Prepared
    from appliance.authn.requester import Outcome, Requester
    from appliance.authn.sending import Line
    from appliance.authn.settings import RequesterSettings

__all__ = ["main", "parser"]

_EXAMPLES = """
examples:
  authnjwt --token-file token_file
      a client certificate for whom the token names
  authnjwt -D -u client -u server --token-file /run/token
      two keychains with one token, renewed for as long as it runs
  authnjwt -u ioc --token-file /run/token --if-due
      for a timer: a certificate for an IOC, when it is time for one
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = authn_parser(
        "authnjwt",
        "JSON Web Token authenticator: exchange a token for a certificate. Name, organization and validity come from "
        "the token. It is sent over TLS to the certificate service itself, and to nobody else.",
        _EXAMPLES,
    )
    add = made.add_argument
    add(
        "--token-file",
        metavar="FILE",
        help="File that holds the token; - reads standard input. With -D, somebody else must refresh the file. Default: the file "
        "named by EPICS_AUTH_JWT_FILE.",
    )
    add(
        "--token-command",
        metavar="COMMAND",
        help="Program, with its arguments, that prints a token; it is started without a shell.",
    )
    add(
        "--oauth",
        metavar="FILE",
        help="YAML file that says how to get tokens from an OAuth 2.0 identity provider.",
    )
    add(
        "--allow-plaintext-token",
        action="store_true",
        help="Send the token unencrypted if the service has no TLS: anyone who sees it can use it.",
    )
    return made


def _source(options: argparse.Namespace, keychain: str, say: Callable[[str], None]) -> TokenSource:
    from appliance.authn.jwt.sources import open_source

    return open_source(
        token_file=options.token_file,
        token_command=options.token_command,
        oauth=options.oauth,
        keychain=keychain,
        environ=os.environ,
        say=say,
    )


class _Tokens:
    """Makes the requests of one run; one token serves all its keychains."""

    early = True
    together = True

    def __init__(self, source: Callable[[], TokenSource], *, allow_plaintext: bool) -> None:
        self._open = source
        self._source: TokenSource | None = None
        self._allow_plaintext = allow_plaintext

    def line(self) -> Line:
        from appliance.authn.sending import Line

        return Line(secret=True, allow_plaintext=self._allow_plaintext)

    async def prepare(self, better_than: datetime | None) -> Prepared:
        from datetime import UTC, datetime

        from appliance.authn.jwt.requester import check_token, jwt_request
        from appliance.authn.live.keeper import Prepared

        # As late as this, because a timer that finds nothing to do needs no token.
        source = self._source = self._open() if self._source is None else self._source
        token = await source.fetch(better_than=better_than)
        check_token(token, now=datetime.now(UTC))

        def request(asking: Requester) -> tuple[Callable[[str], CertRequest], x509.Name | None]:
            return jwt_request(asking.settings, token), None

        return Prepared(request, lambda: source.sent(token))

    async def close(self) -> None:
        if self._source is not None:
            await self._source.close()


async def _work(options: argparse.Namespace) -> int:
    keychains: list[str] = []
    tokens = _Tokens(
        lambda: _source(options, keychains[0], complain), allow_plaintext=options.allow_plaintext_token
    )
    prepared: list[Prepared] = []

    async def ask(
        options: argparse.Namespace, settings: RequesterSettings, asking: Requester, line: Line
    ) -> Outcome:
        keychains.append(settings.keychain)

        async def make(pub_key: str) -> CertRequest:
            if not prepared:
                prepared.append(await tokens.prepare(None))
            return prepared[0].request(asking)[0](pub_key)

        return await asking.request(
            make,
            subject=None,
            line=line,
            force=options.force,
            if_due=options.if_due,
            new_key=options.new_key,
        )

    try:
        return await authenticate(options, ask, tokens.line)
    finally:
        await tokens.close()


def _stay(options: argparse.Namespace) -> int:
    def prepare(requesters: list[Requester]) -> Callable[[], Maker]:
        from appliance.errors import ConfigurationError

        where = options.token_file
        if where == "-":
            raise ConfigurationError(
                "-D cannot use --token-file -, because standard input has one token and each renewal needs another; name a file "
                "that is refreshed, or use --token-command or --oauth"
            )
        first = requesters[0]
        # Opened here for its errors, which end the program before it says that it is ready.
        source = _source(options, first.settings.keychain, first.say)
        return lambda: _Tokens(lambda: source, allow_plaintext=options.allow_plaintext_token)

    return keep(options, "authnjwt", prepare)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return run_authenticator(parser(), argv, _work, _stay)


if __name__ == "__main__":
    sys.exit(main())
