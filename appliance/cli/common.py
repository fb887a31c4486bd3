"""What the client tools share: command line, configuration, context, output, and exit statuses.

Most of what a tool's user waits for is its start-up, so nothing is imported here that printing one value does not need:
see docs/reference/tools.md for the figures.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import sys

from appliance.daemon.commandline import FORMATS, Parser, add_completion, add_version
from appliance.daemon.names import identified

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence
    from contextlib import AbstractAsyncContextManager
    from typing import Any, TypeVar

    from appliance.client import Context
    from appliance.config.pva import ClientConfig, Effective
    from appliance.pvdata.types import TypeDesc
    from appliance.pvdata.value import Value

    _T = TypeVar("_T")

__all__ = [
    "FAILED",
    "INTERRUPTED",
    "OK",
    "Output",
    "Parser",
    "add_common",
    "add_completion",
    "add_format",
    "add_json",
    "add_version",
    "all_of",
    "array_limit",
    "complain",
    "effective_config",
    "indented",
    "keep_running",
    "open_context",
    "run_tool",
    "selected",
    "shown",
]

OK, FAILED, INTERRUPTED, PIPE = 0, 1, 2, 141
"""Exit statuses, as in pvxs's tools; 141 is what a shell reports for a program whose reader went away."""

DEFAULT_LIMIT = 20
"""Elements that are printed of an array, as in the SPVA tools."""
_FOREVER = 10 * 365 * 86400.0


def add_common(
    parser: argparse.ArgumentParser,
    *,
    timeout: str = "Operation timeout in seconds.",
    default_s: float = 5.0,
) -> None:
    """Add the options that every client tool has; ``timeout`` says what ``-w`` bounds."""
    add_version(parser)
    add = parser.add_argument
    add("-v", "--verbose", action="store_true", help="Make more noise: the effective configuration.")
    add(
        "-d",
        "--debug",
        action="store_true",
        help='Shorthand for $PVXS_LOG="pvxs.*=DEBUG": searches, connections, TLS, status, messages.',
    )
    add(
        "-w",
        "--timeout",
        dest="timeout",
        metavar="SEC",
        type=_seconds,
        default=default_s,
        help=f"{timeout} Default {default_s:g}.",
    )
    add_completion(parser)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument(
        "--json", action="store_true", help="One JSON object a line on standard output, and nothing else."
    )


def add_format(parser: argparse.ArgumentParser, *, default: str = "delta") -> None:
    """Add ``-F`` and ``-#``."""
    add = parser.add_argument
    add(
        "-F",
        "--format",
        dest="format",
        metavar="FMT",
        help=f"Output format: delta, tree, or nt, one short line for people. Default $SPVA_FORMAT, else {default}.",
    )
    add(
        "-#",
        dest="limit",
        metavar="CNT",
        type=_count,
        help=f"Most elements to print of each array; 0 means all. Default {DEFAULT_LIMIT}.",
    )


def array_limit(options: argparse.Namespace, default: str = "delta") -> tuple[str, int]:
    """Return the format and limit of ``add_format``. An unknown format is a warning, as in pvxs.

    Raises:
        ConfigurationError: They would have no effect.
    """
    if options.json and (options.format is not None or options.limit is not None):
        from appliance.errors import ConfigurationError

        given = "-F" if options.format is not None else "-#"
        raise ConfigurationError(
            f"{given} has no effect with --json, which has one form and all elements; leave it out"
        )
    limit = DEFAULT_LIMIT if options.limit is None else options.limit
    setting = "" if options.json else os.environ.get("SPVA_FORMAT", "")
    for chosen, source in ((options.format, ""), (setting, " of SPVA_FORMAT")):
        if chosen in FORMATS:
            return chosen, limit
        if chosen:
            complain(f"Warning: ignoring unknown format '{chosen}'{source}; known are {', '.join(FORMATS)}")
    return default, limit


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value >= 0:  # also false for NaN
        raise argparse.ArgumentTypeError(f"expected seconds, zero or more, not {text!r}")
    return min(value, _FOREVER)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected a number of elements, zero or more, not {text!r}")
    return int(text[:18])


def complain(text: str) -> None:
    """Print one line on standard error."""
    out = sys.stderr
    if out is not None:
        sys.stdout.flush()
        print(_printable(identified(text)), file=out, flush=True)


_CONTROL = re.compile(
    "[\\x00-\\x09\\x0b-\\x1f\\x7f-\\x9f\\u200b-\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ufeff]"
)
"""Characters that control a terminal, or the order in which it shows text; all except line ends."""


def _printable(text: str) -> str:
    """Make characters that control a terminal visible, because servers choose parts of messages."""
    return text if _CONTROL.search(text) is None else _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """Do the same for text that must not begin a line of its own, such as a name."""
    return _printable(text).replace("\n", "\\n")


class Output:
    """Standard output: text as pvxs prints it, or JSON lines."""

    __slots__ = ("json",)

    def __init__(self, *, json: bool = False) -> None:
        self.json = json

    def write(self, text: str) -> None:
        """Print text, also from the network."""
        sys.stdout.write(_printable(text))

    def object(self, **fields: Any) -> None:
        """Print one JSON object."""
        from json import dumps

        text = dumps(fields, allow_nan=False, ensure_ascii=False)
        sys.stdout.write(_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")
        sys.stdout.flush()

    def value(self, name: str, value: Value, request: str, fmt: str, limit: int) -> None:
        """Print a PV's name and its value."""
        if self.json:
            self.object(name=name, value=selected(value, request))
            return
        self.write(shown(name, value, request, fmt, limit))
        sys.stdout.flush()

    def failure(self, name: str, error: Exception) -> None:
        """Say on standard error and in JSON why ``name`` has no result."""
        text = one_line(str(error))
        shown = name if len(name) <= 100 else f"{name[:97]}..."
        complain(f"Error: {text if name and text.startswith(name) else f'{shown}: {text}'}")
        if self.json:
            self.object(name=name, error=text)


def shown(name: str, value: Value, request: str, fmt: str, limit: int) -> str:
    """Return a PV's name and value as text; a value without a short form is shown as a tree."""
    if fmt == "nt":
        from appliance.cli.nt import short

        line = short(name, selected(value, request), limit)
        if line is not None:
            return line
        fmt = "tree"
    from appliance.pvdata.render import render

    return f"{name}\n{indented(render(value, fmt, limit))}"


def selected(value: Value, request: str) -> Any:
    """Return the value in JSON form, without the fields that ``request`` does not ask for.

    The type of an answer has all fields, so a field that was not asked for would look like a zero.
    """
    from appliance.pvdata.jsonio import to_plain

    plain = to_plain(value)
    if not request:
        return plain
    from appliance.pvdata.pvrequest import PVRequest, request_mask

    parsed = PVRequest(request)
    kind = value.type
    mask = request_mask(type(value).from_store(parsed.type, parsed.store, 1), kind)
    return _pruned(plain, kind, 0, mask)


def _pruned(plain: Any, kind: TypeDesc, base: int, mask: int) -> Any:
    kept = {}
    for name, number in kind.offsets.items():
        if not name or "." in name or not mask >> base + number & 1:
            continue
        member = kind.leaf_types[number]
        item = plain[name]
        kept[name] = _pruned(item, member, base + number, mask) if member.offsets.keys() - {""} else item
    return kept


def indented(text: str) -> str:
    """Indent every line by one step."""
    return "".join([f"    {line}" for line in text.splitlines(keepends=True)])


def effective_config(options: argparse.Namespace) -> Effective[ClientConfig]:
    """Read the configuration. Warnings go to standard error, and with ``-v`` all of it."""
    from appliance.config.pva import resolve_client

    effective = resolve_client()
    for warning in effective.warnings:
        complain(f"Warning: {warning}")
    if options.verbose:
        complain(effective.render())
    return effective


def open_context(effective: Effective[ClientConfig]) -> AbstractAsyncContextManager[Context]:
    """Return the client: plain, or with the keychain's certificate and the status of certificates."""
    config = effective.config
    if config.tls_enabled or config.tls_options.tls_required:
        from appliance.certmon.endpoints import open_client

        return open_client(effective, beacons=False)
    from appliance.client.context import Context

    return Context(config, beacons=False)


async def all_of(works: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Run things side by side; the first that raises cancels the others, quietly."""
    from asyncio import ensure_future, gather

    tasks = [ensure_future(work) for work in works]
    try:
        return await gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await gather(*tasks, return_exceptions=True)
        raise


def run_tool(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    work: Callable[[argparse.Namespace], Coroutine[Any, Any, int]] | None,
) -> int:
    """Parse, run ``work``, and turn any result into one line and an exit status.

    In a parser with sub-commands each names its ``work``. Without ``argv`` this is the process itself: it ends here, without
    the interpreter's clean-up.
    """
    restore = _process_as_it_is() if argv is not None else None
    # Saves 10 ms of start-up; a single operation makes nothing worth collecting. See `keep_running`.
    gc.disable()
    options = argparse.Namespace(verbose=False)
    try:
        options = parser.parse_args(argv) if work is None else parser.parse_intermixed_args(argv)
        sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
        status = _run(options, work or options.work)
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
        status = PIPE
    except KeyboardInterrupt:
        if options.verbose:
            complain("Interrupted")
        status = INTERRUPTED
    finally:
        # Also if a command line is refused, or a defect escapes: the caller continues.
        if restore is not None:
            restore()
    if argv is None:
        # Saves 15 ms, in which hundreds of modules would be removed one by one. All output has been flushed.
        os._exit(status)
    return status


def keep_running() -> None:
    """Collect garbage from now on, because this tool runs for longer than an operation."""
    gc.freeze()
    gc.enable()


def _import_asyncio() -> Any:
    """Import asyncio without the ssl module, which is a tenth of the start-up: our TLS does not use it.

    asyncio works without it (``ssl = None``); a later import of ssl still succeeds.
    """
    if "asyncio" in sys.modules or "ssl" in sys.modules:
        import asyncio

        return asyncio
    sys.modules["ssl"] = None  # type: ignore[assignment]
    try:
        import asyncio
    finally:
        del sys.modules["ssl"]
    return asyncio


def _run(options: argparse.Namespace, work: Callable[[argparse.Namespace], Coroutine[Any, Any, int]]) -> int:
    asyncio = _import_asyncio()

    from appliance.errors import ApplianceError

    _prepare_logging(debug=options.debug, spec=os.environ.get("PVXS_LOG", ""))
    try:
        status: int = asyncio.run(work(options))
    except ApplianceError as error:
        complain(f"Error: {error}")
        return FAILED
    return status


def _prepare_logging(*, debug: bool, spec: str) -> None:
    import logging

    if debug or spec:
        _configure_logging("DEBUG" if debug else "WARNING")
        return

    class Late(logging.Handler):
        """A handler that is set up when it is first used: most runs log nothing and need no formatter."""

        def emit(self, record: logging.LogRecord) -> None:
            logger.removeHandler(self)
            logger.propagate = True
            _configure_logging("WARNING")
            logger.handle(record)

    logger = logging.getLogger("appliance")
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    logger.addHandler(Late())


def _process_as_it_is() -> Callable[[], None]:
    """Remember what a tool changes in its process, for a caller there; return a function that restores it."""
    restore_logging = _logging_as_it_is()
    collects, output, errors = gc.isenabled(), sys.stdout, sys.stdout.errors  # None for one in memory

    def restore() -> None:
        (gc.enable if collects else gc.disable)()
        if errors is not None:
            output.reconfigure(errors=errors)  # type: ignore[union-attr]
        restore_logging()

    return restore


def _logging_as_it_is() -> Callable[[], None]:
    """Remember how logging is set up, for a caller in the same process; return a function that restores it."""
    import logging

    def ours() -> list[logging.Logger]:
        known = logging.Logger.manager.loggerDict.items()
        named = [
            item for name, item in known if name.startswith("appliance") and isinstance(item, logging.Logger)
        ]
        return [logging.getLogger(), *named]

    before = {logger: (logger.level, logger.propagate, logger.handlers[:]) for logger in ours()}
    filters = [(handler, handler.filters[:]) for _, _, handlers in before.values() for handler in handlers]
    raising = logging.raiseExceptions

    def restore() -> None:
        logging.raiseExceptions = raising
        for handler, former in filters:
            handler.filters[:] = former
        for logger in ours():
            level, logger.propagate, logger.handlers[:] = before.get(logger, (logging.NOTSET, True, []))
            logger.setLevel(level)

    return restore


def _configure_logging(level: str) -> None:
    from appliance.daemon.logging import configure

    for fault in configure(level, "text"):
        complain(f"Warning: {fault}")
    if level != "DEBUG":
        _tell_once()


def _tell_once() -> None:
    """Log each repeated message once: a tool tries again many times until its timeout."""
    import logging

    told: set[str] = set()

    def is_news(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if text in told:
            return False
        if len(told) < 1000:
            told.add(text)
        return True

    for handler in logging.getLogger().handlers:
        if getattr(handler, "of_appliance", False):  # not those of a program that runs the tool inside itself
            handler.addFilter(is_news)


def discard_output() -> None:
    """Discard buffered output for a reader that is gone, so that the interpreter's end does not raise again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
