"""``authnstd``: a keychain for a name that an administrator will approve."""

from __future__ import annotations

import sys

from appliance.cli.authn import authenticate, authn_parser, keep, run_authenticator

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from typing import Any

    from cryptography import x509

    from appliance.authn.ccr import CertRequest
    from appliance.authn.live.keeper import Maker, Prepared
    from appliance.authn.requester import Outcome, Requester
    from appliance.authn.sending import Line
    from appliance.authn.settings import RequesterSettings

__all__ = ["main", "parser"]

_EXAMPLES = """
examples:
  authnstd
      a client certificate for this account at this host
  authnstd -u ioc -n pressure-ioc -o example.org -t 1y
      a certificate for an IOC, for one year
  authnstd -D -u ioc -n pressure-ioc
      and renew the certificate for as long as it runs
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
        one_per_name=True,
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


async def _ask(
    options: argparse.Namespace, settings: RequesterSettings, asking: Requester, line: Line
) -> Outcome:
    from appliance.authn.std.requester import as_before, std_request, std_subject

    if not options.force:
        # With --force the keychain is made again, for this account's present name.
        settings = as_before(settings, asking.certificate_there())
    return await asking.request(
        std_request(settings, now=asking.now()),
        subject=std_subject(settings),
        line=line,
        force=options.force,
        if_due=options.if_due,
        new_key=options.new_key,
    )


def _check_names(options: argparse.Namespace, requests: list[tuple[RequesterSettings, Requester]]) -> None:
    """Refuse two requests for one name before the first is made: the service would refuse the second.

    Raises:
        ConfigurationError: Two keychains would have one name.
    """
    from appliance.authn.std.requester import as_before, std_subject
    from appliance.errors import ConfigurationError

    names: dict[x509.Name, str] = {}
    for settings, asking in requests if len(requests) > 1 else ():
        here = settings if options.force else as_before(settings, asking.certificate_there())
        subject = std_subject(here)
        if subject in names:
            raise ConfigurationError(
                f"-u {names[subject]} and -u {here.usage} ask for two certificates of the name {here.name}, and the service gives a "
                "name without proof only one; use -u ioc, which is for both ends, or ask for each with a name of its own (-n)"
            )
        names[subject] = here.usage


class _Names:
    """The daemon's part: the names that the keychains have, else those of the settings."""

    early = False
    together = False

    def line(self) -> Line:
        return _line()

    async def prepare(self, better_than: datetime | None) -> Prepared:
        from appliance.authn.live.keeper import Prepared

        return Prepared(self.request, lambda: None)

    @staticmethod
    def request(asking: Requester) -> tuple[Callable[[str], CertRequest], x509.Name]:
        from appliance.authn.std.requester import as_before, std_request, std_subject

        settings = as_before(asking.settings, asking.certificate_there())
        return std_request(settings, now=asking.now()), std_subject(settings)

    async def close(self) -> None:
        pass


def _stay(options: argparse.Namespace) -> int:
    def prepare(requesters: list[Requester]) -> Callable[[], Maker]:
        _check_names(options, [(asking.settings, asking) for asking in requesters])
        for asking in requesters:
            _, subject = _Names.request(asking)
            asking.check_identity(asking.look(), subject)
        return _Names

    return keep(options, "authnstd", prepare, **_identity(options))


def _identity(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "name": options.name,
        "organization": options.organization,
        "organizational_unit": options.organizational_unit,
        "country": options.country,
        "validity": options.validity,
    }


def _line() -> Line:
    from appliance.authn.sending import Line

    return Line()


async def _work(options: argparse.Namespace) -> int:
    return await authenticate(
        options, _ask, _line, lambda requests: _check_names(options, requests), **_identity(options)
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return run_authenticator(parser(), argv, _work, _stay)


if __name__ == "__main__":
    sys.exit(main())
