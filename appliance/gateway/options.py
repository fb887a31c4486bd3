"""The command line of ``pvagw``: our daemons' options, and those of p4p's gateway."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from appliance.daemon.commandline import Parser, add_completion, add_daemon_options, add_version
from appliance.errors import ConfigurationError

if TYPE_CHECKING:
    import argparse

__all__ = ["EXAMPLE", "NAME", "level", "log_as", "parser", "unit", "write_example"]

NAME: Final = "pvagw"
_EPILOG: Final = """\
FILE is YAML, or JSON of p4p's gateway (version 1 or 2, with comments): what
begins with a brace is read as JSON. SIGHUP reads PV lists, access security and
keychains again.

exit status:
  0  stopped on request; the files are good; or the text was written
  1  a file, an option or a port cannot be used; the message says why

examples:
  pvagw --config /etc/spva/gateway/lab/gateway.yml
      run
  pvagw -T gw.conf
      only check a file of p4p's gateway and the files that it names
  pvagw --convert gw.conf > gateway.yml
      the same settings as YAML
"""
_MESSAGES: Final = "appliance.transport.messages"
P4P: Final = "p4p.gw"
P4P_AUDIT: Final = "p4p.gw.audit"
"""The loggers of p4p's gateway, which sites name in their logging files."""

EXAMPLE: Final = """\
# Example configuration of pvagw.
#
# The server side "outer" listens on 1.2.3.4; clients in its network get the PVs
# that the client side "inner" finds in the network of 5.6.7.8. The server side
# "status" shows the inner network only the status PVs of the gateway.
clients:
  inner:
    pva:
      addr_list: 5.6.7.255
      auto_addr_list: false
servers:
  outer:
    clients: [inner]
    pva:
      intf_addr_list: [1.2.3.4]
      beacon_addr_list: 1.2.3.255
      auto_beacon_addr_list: false
    status_prefix: "sts:"
    # pvlist: some.pvlist
    # access: {file: some.acf}
  status:
    clients: []
    pva:
      intf_addr_list: [5.6.7.8]
      beacon_addr_list: 5.6.7.255
      auto_beacon_addr_list: false
    status_prefix: "stsc:"
"""

_UNIT: Final = """\
[Unit]
Description=PVAccess gateway ({instance})
Wants=network-online.target
After=network-online.target

[Service]
Type=notify
WatchdogSec=15
Restart=on-failure
RestartSec=3
SyslogIdentifier=pvagw-{instance}
ExecStart={python} -m appliance.gateway.daemon --config {config}
ExecReload=/bin/kill -HUP $MAINPID
LimitNOFILE=65536
# Put logs go below /var/lib/pvagw/{instance}. So do keychains, which the gateway's user must be able to read.
StateDirectory=pvagw/{instance}
Environment=XDG_CONFIG_HOME=/var/lib/pvagw/{instance} XDG_DATA_HOME=/var/lib/pvagw/{instance}

# The gateway needs no privileges, and no identity that lasts.
DynamicUser=yes
UMask=0077
CapabilityBoundingSet=
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
ProtectClock=yes
ProtectHostname=yes
ProtectControlGroups=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProcSubset=pid
PrivateTmp=yes
PrivateDevices=yes
PrivateUsers=yes
LockPersonality=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = Parser(
        prog=NAME,
        usage="pvagw [options] FILE\n       pvagw [options] --config FILE",
        description="A gateway for Secure PVAccess: clients of one network use the PVs of another one.",
        epilog=_EPILOG,
    )
    add_version(made)
    add_completion(made)
    what = add_daemon_options(
        made,
        config="configuration file, in YAML or in p4p's JSON; the same as FILE",
        verbose="log more (level DEBUG)",
    )
    what.add_argument(
        "-T",
        "--test-config",
        dest="check_config",
        action="store_true",
        help="the same as --check-config: read all files, print their names, and exit",
    )
    what.add_argument(
        "--convert", action="store_true", help="print FILE, which is JSON of p4p's gateway, as YAML and exit"
    )
    what.add_argument(
        "--example-config",
        action="store_true",
        help="write an example configuration to FILE and exit; FILE may be - for the terminal",
    )
    what.add_argument(
        "--example-systemd",
        action="store_true",
        help="write an example unit for systemd to FILE and exit; pvagw@NAME.service runs /etc/pvagw/NAME.yml",
    )
    add = made.add_argument
    add(
        "--logging",
        metavar="JSON",
        help="log as this file says (Python's dictConfig, JSON with comments); loggers: p4p.gw, and p4p.gw.audit for puts",
    )
    add("--debug", action="store_true", help="log each PVAccess message that comes or goes")
    add("--no-ban-local", action="store_true", help="no effect; the gateway never uses its own servers")
    add("file", nargs="?", metavar="FILE", help="configuration file, or the file to write")
    return made


def level(options: argparse.Namespace, configured: str) -> str:
    """Return the log levels that the options and the configuration ask for.

    Args:
        options: The command line.
        configured: The configuration's ``log_level``.
    """
    wanted = "DEBUG" if options.verbose else configured
    if options.debug:
        return f"{wanted},{_MESSAGES}=DEBUG"
    # As with p4p, each message is logged only for --debug.
    return f"{wanted},{_MESSAGES}=INFO" if options.verbose else wanted


# -- examples ------------------------------------------------------------------------------------------


def unit(file: str) -> str:
    """Return the text of a unit; an ``@`` in the file's name gives the instance."""
    name = os.path.splitext(os.path.basename(file))[0]  # noqa: PTH119, PTH122 - text in, text out
    _, _, instance = name.partition("@")
    instance = instance if instance and "@" not in instance else "%i"
    return _UNIT.format(instance=instance, python=sys.executable, config=f"/etc/pvagw/{instance}.yml")


def write_example(file: str, text: str, *, usual: str) -> None:
    """Write an example to a file, or to stdout for ``-``. A file that has text is never overwritten.

    Args:
        file: Its name.
        text: The example.
        usual: Where such a file usually is.

    Raises:
        ConfigurationError: The file exists, or it cannot be written.
    """
    if file == "-":
        sys.stdout.write(text)
        sys.stderr.write(f"# for instance save it as {usual}\n")
        return
    try:
        with open(file, "a", encoding="utf-8") as target:  # noqa: PTH123
            if target.tell():
                raise ConfigurationError(
                    "the file has text already; remove it, or name another one", file=file
                )
            target.write(text)
    except OSError as error:
        raise ConfigurationError(f"cannot be written: {error.strerror or error}", file=file) from None


# -- logging -------------------------------------------------------------------------------------------


class _OneLine(logging.Filter):
    """Writes control characters of a message out: the formats of a site do not, and a client could add lines to a log."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change a record; always keep it."""
        from appliance.daemon.logging import one_line

        record.msg = one_line(record.getMessage())
        record.args = None
        return True


class _As(logging.Handler):
    """Gives records to another logger, under its name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._target = logging.getLogger(name)

    def emit(self, record: logging.LogRecord) -> None:
        copy = logging.makeLogRecord(vars(record))
        copy.name = self._target.name
        self._target.handle(copy)


def log_as(given: Any, file: str) -> None:
    """Log as a dictConfig says. Unless it names loggers of ours, they log under the names of p4p's gateway.

    Args:
        given: What the file has.
        file: Its name.

    Raises:
        ConfigurationError: It is no such configuration; the text has the file.
    """
    from logging.config import dictConfig

    from appliance.daemon.logging import ROOT, Redactor

    try:
        dictConfig(given)
    except (ValueError, TypeError, AttributeError, ImportError, OSError) as error:
        cause = f": {error.__cause__}" if error.__cause__ is not None else ""
        raise ConfigurationError(f"not a logging configuration: {error}{cause}", file=file) from None
    ours = logging.getLogger(ROOT)
    for name, known in list(logging.root.manager.loggerDict.items()):
        # dictConfig switches off all loggers that exist and that it does not name; ours were made when they were imported.
        if isinstance(known, logging.Logger) and f"{name}.".startswith(f"{ROOT}."):
            known.disabled = False
    named = given.get("loggers", {})
    for handler in {
        handler for name in ("", P4P, P4P_AUDIT, *named) for handler in logging.getLogger(name).handlers
    }:
        handler.addFilter(Redactor())
        handler.addFilter(_OneLine())
    if any(f"{name}.".startswith(f"{ROOT}.") for name in named):
        return
    for source, target in ((ours, P4P), (logging.getLogger("appliance.gateway.putlog"), P4P_AUDIT)):
        source.handlers = [_As(target)]
        source.propagate = False
        source.setLevel(logging.getLogger(target).getEffectiveLevel())
