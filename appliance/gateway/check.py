"""What ``pvagw --check-config`` looks at besides the configuration itself."""

from __future__ import annotations

from typing import NamedTuple

from appliance.config.pva import ClientConfig, ServerConfig
from appliance.errors import ConfigurationError
from appliance.gateway.config import GatewayConfig, Sides
from appliance.gateway.files import Files, read_files
from appliance.gateway.hosts import unresolved
from appliance.gateway.p4p_json import Loaded

__all__ = ["Checked", "borrowed_keychains", "check"]


class Checked(NamedTuple):
    """What a check has found."""

    names: list[str]
    """The names of all files that were read, the configuration first."""
    warnings: list[str]
    """One sentence for each thing that is probably not meant."""
    faults: list[ConfigurationError]
    """What is wrong outside of these files, with the keys of the configuration."""


def check(loaded: Loaded, sides: Sides) -> Checked:
    """Read everything that a configuration names, look up all names of hosts, and open nothing; blocks.

    Raises:
        AccessFileError: A PV list or an access security file is wrong.
        ConfigurationError: Another file cannot be where the configuration wants it.
    """
    files = read_files(loaded.config)
    without, faults = _check_keychains(sides)
    hidden = _hidden_statuses(loaded.config, sides, files)
    warnings = [
        *loaded.warnings,
        *files.warnings,
        *hidden,
        *borrowed_keychains(sides),
        *without,
    ]
    return Checked([loaded.document.file, *files.names], warnings, [*faults, *unresolved(loaded.config)])


def _hidden_statuses(config: GatewayConfig, sides: Sides, files: Files) -> list[str]:
    """Find server sides with TLS whose PV list hides the PVs with the status of certificates."""
    warnings = []
    for name, side in config.servers.items():
        pvlist = files.servers[name].pvlist
        clients = [sides.clients[client].config for client in side.clients]
        settings = [sides.servers[name].config, *clients]
        if pvlist is None or not clients or not any(one.tls_keychain for one in settings):
            continue
        prefix = clients[0].cert_pv_prefix
        if pvlist.lookup(f"{prefix}:STATUS:00000000:1", "") is None:
            warnings.append(
                f"servers.{name}: the PV list denies {prefix}:STATUS:..., so clients cannot follow the status of certificates "
                f"through this gateway; add: {prefix}:.* ALLOW"
            )
    return warnings


def borrowed_keychains(sides: Sides) -> list[str]:
    """Find client sides that would use the own keychain of the user who runs the gateway, because none is given.

    Servers would take everybody behind the gateway for that person.
    """
    return [
        f"clients.{name}: no tls_keychain is given, so servers see the certificate of the user who runs the gateway "
        f"({effective.config.tls_keychain}); give the gateway its own, or for none: tls_keychain: ''"
        for name, effective in sides.clients.items()
        if effective.config.tls_keychain and effective.sources.get("tls_keychain") == "default"
    ]


def _check_keychains(sides: Sides) -> tuple[list[str], list[ConfigurationError]]:
    """Read the keychains of all sides; blocks.

    Returns:
        A sentence for each that cannot be used and that the gateway does without, and an error for each without which it would
        not start.
    """
    from appliance.certmon.live_keychain import LiveKeychain

    warnings: list[str] = []
    faults: list[ConfigurationError] = []
    settings: list[tuple[str, ClientConfig | ServerConfig]] = [
        *((f"clients.{name}", side.config) for name, side in sides.clients.items()),
        *((f"servers.{name}", side.config) for name, side in sides.servers.items()),
    ]
    for name, config in settings:
        if config.tls_keychain:
            said, ends = LiveKeychain(config).rehearse()
            if ends:
                faults.append(ConfigurationError(said, key=f"{name}.pva.tls_keychain"))
            elif said:
                warnings.append(f"{name}: {said}")
    return warnings, faults
