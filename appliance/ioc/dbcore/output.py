"""Output of shell commands: it goes where the shell's output goes, also to a file or an operator's console."""

from __future__ import annotations

import re

from appliance.errors import ApplianceError
from appliance.ioc.dbcore import _c
from appliance.ioc.dbcore.boot import flush_output
from appliance.ioc.dbcore.callbacks import kept_failures
from appliance.ioc.dbcore.streams import (
    error_stream,
    memory_stream,
    output_stream,
    print_to,
    prints_to,
    visible,
    written,
)
from appliance.ioc.dbcore.words import plain

#: The text that EPICS adds to each failure of a single line.
_BREAK = "iocsh Error: Break\n"

#: What EPICS prints instead of running a line whose input or output cannot be redirected; the line counts as done.
_NO_FILE = re.compile(r"^(?:\x1b\[[0-9;]*m)?(Can't open '[^\n]*': [^\n\x1b]*)", re.MULTILINE)
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'')

#: The most octets of a captured command's output; the rest is cut off.
MAX_OUTPUT = 1 << 20


def shell_print(text: str) -> None:
    """Print a line, from a command that :func:`.callbacks.register_command` made."""
    print_to(output_stream(), text + "\n")


def shell_capture(command: str) -> tuple[bool, str]:
    """Run one line of the IOC shell and return whether it succeeded and what it printed.

    Only the calling thread's output is captured (epicsSetThreadStdout). Messages of EPICS' error log go to
    the log as usual.
    """
    with memory_stream() as (descriptor, stream), kept_failures() as failures:
        with prints_to(output=stream, errors=stream):
            status = _c.iocshCmd(_c.raw(command))
        flush_output()
        text = written(descriptor, limit=MAX_OUTPUT)
    ok = status == 0 and _not_redirected(command, text) is None
    return ok, text.replace(_BREAK, "") + "".join(f"{failure}\n" for failure in failures)


def shell_line(command: str) -> ApplianceError | None:
    """Run one line of the IOC shell; return why it failed, or None.

    Its standard output appears at once. Its standard error is passed on at the end, or is the
    reason of the failure.
    """
    with memory_stream() as (descriptor, stream), kept_failures() as failures:
        with prints_to(errors=stream):
            status = _c.iocshCmd(_c.raw(command))
        flush_output()
        said = plain(written(descriptor, limit=MAX_OUTPUT).replace(_BREAK, ""))
    if status:
        if failures:
            return failures[0]
        return ApplianceError("; ".join(said.splitlines()) or "the command failed, see above")
    if (why := _not_redirected(command, said)) is not None:
        return ApplianceError(why)
    if said:
        # It may hold what clients wrote.
        print_to(error_stream(), visible(said) + "\n")
    return None


def _not_redirected(command: str, said: str) -> str | None:
    """Return why EPICS has not run a line: a file of its redirection cannot be opened."""
    if not re.search("[<>]", _QUOTED.sub("", command)):
        return None
    found = _NO_FILE.search(said)
    return None if found is None else f"{found[1]}; the line was not run"


def shell_commands() -> list[str]:
    """Return the names of all commands of the IOC shell."""
    _, text = shell_capture("help")
    return text.partition("\n\n")[0].split()


def serves_channel_access() -> bool:
    """Whether the definition contains the Channel Access server, wanted or not (``registrar(rsrvRegistrar)``)."""
    return "rsrvRegistrar" in shell_capture("dbDumpRegistrar")[1]
