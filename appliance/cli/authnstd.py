"""``authnstd``: a keychain for a name that an administrator will approve."""

from __future__ import annotations

import sys

from appliance.cli.authn import authenticate, authn_parser, run_authenticator

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from appliance.authn.requester import Outcome, Requester
    from appliance.authn.settings import RequesterSettings

__all__ = ["main", "parser"]

_EXAMPLES = """
examples:
  authnstd
      a client certificate for this account at this host
  authnstd -u ioc -n pressure-ioc -o example.org -t 1y
      a certificate for an IOC, for one year
  authnstd -a --trust-anchor-fingerprint sha256:HEX
      only the trust anchor, to authenticate servers
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = authn_parser(
        "authnstd",
        "Standard authenticator: request a certificate for a name. Nothing proves the name, so the certificate is "
        "PENDING_APPROVAL until an administrator approves it, unless the site decided otherwise.",
        _EXAMPLES,
    )
    add = made.add_argument
    add("-n", "--name", help="Common name. Default: this account.")
    add("-o", "--organization", help="Organization. Default: this host's name.")
    add("--ou", dest="organizational_unit", metavar="OU", help="Organizational unit. Default: none.")
    add("-c", "--country", metavar="CC", help="Country, two letters. Default: that of the locale, else US.")
    add(
        "-t",
        "--time",
        dest="validity",
        metavar="DURATION",
        help="How long the certificate should hold: minutes, or like 1d, 1y6M, 1y2M3d. Default: the service's.",
    )
    return made


async def _ask(options: argparse.Namespace, settings: RequesterSettings, asking: Requester) -> Outcome:
    from appliance.authn.std.requester import as_before, std_request, std_subject

    if not options.force:
        # With --force the keychain is made again, for this account's present name.
        settings = as_before(settings, asking.certificate_there())
    return await asking.request(
        std_request(settings, now=asking.now()),
        subject=std_subject(settings),
        force=options.force,
        if_due=options.if_due,
    )


async def _work(options: argparse.Namespace) -> int:
    return await authenticate(
        options,
        _ask,
        name=options.name,
        organization=options.organization,
        organizational_unit=options.organizational_unit,
        country=options.country,
        validity=options.validity,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return run_authenticator(parser(), argv, _work)


if __name__ == "__main__":
    sys.exit(main())
