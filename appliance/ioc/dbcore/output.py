"""Output of shell commands: it goes where the shell's output goes, also to a file or an operator's console."""

from __future__ import annotations

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
    written,
)
from appliance.ioc.dbcore.words import plain

#: The text that EPICS adds to each failure of a single line.
_BREAK = "iocsh Error: Break\n"

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
    return status == 0, text.replace(_BREAK, "") + "".join(f"{failure}\n" for failure in failures)


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
    if said:
        print_to(error_stream(), said + "\n")
    return None


def shell_commands() -> list[str]:
    """Return the names of all commands of the IOC shell."""
    _, text = shell_capture("help")
    return text.partition("\n\n")[0].split()


def serves_channel_access() -> bool:
    """Whether the definition contains the Channel Access server, wanted or not (``registrar(rsrvRegistrar)``)."""
    return "rsrvRegistrar" in shell_capture("dbDumpRegistrar")[1]
