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
        help="File that holds the token; - reads standard input. Default: the file named by EPICS_AUTH_JWT_FILE.",
    )
    add(
        "--allow-plaintext-token",
        action="store_true",
        help="Send the token unencrypted if the service has no TLS: anyone who sees it can use it.",
    )
    return made


async def _ask(options: argparse.Namespace, settings: RequesterSettings, asking: Requester) -> Outcome:
    from appliance.authn.jwt.requester import check_token, jwt_request, read_token, token_source

    def make(pub_key: str) -> CertRequest:
        # Read as late as this, because a timer that finds nothing to do needs no token.
        token = read_token(token_source(options.token_file, os.environ), complain)
        check_token(token, now=asking.now())
        return jwt_request(settings, token)(pub_key)

    return await asking.request(
        make,
        subject=None,
        force=options.force,
        if_due=options.if_due,
        secret=True,
        allow_plaintext=options.allow_plaintext_token,
    )


async def _work(options: argparse.Namespace) -> int:
    return await authenticate(options, _ask)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return run_authenticator(parser(), argv, _work)


if __name__ == "__main__":
    sys.exit(main())
