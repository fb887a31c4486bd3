"""The life of the IOC of this process: definition, records, iocInit, shell, end.

EPICS' database is a singleton of the process and cannot be unloaded: :func:`boot` may be called once, records
are loaded before :func:`ioc_init`, and nothing can be started again after :func:`shutdown`.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Final

from appliance.errors import ApplianceError, ConfigurationError
from appliance.ioc.dbcore import _c
from appliance.ioc.dbcore.errlog import errors_printed_to, give_errors_back, print_errors_to
from appliance.ioc.dbcore.streams import flush_streams, memory_stream, open_stream, visible, written
from appliance.ioc.dbcore.words import complaint, plain, status_text, teach_words, without_colours

#: What softIoc.dbd of EPICS Base contains, without the Channel Access server.
DEFINITIONS: Final = (
    "menuGlobal.dbd",
    "menuConvert.dbd",
    "menuScan.dbd",
    "stdRecords.dbd",
    "filters.dbd",
    "links.dbd",
    "devSoft.dbd",
    "asSub.dbd",
    "dbCore.dbd",
    "dlload.dbd",
    "system.dbd",
)

_libc = ctypes.CDLL(None)
_libc.getenv.restype = ctypes.c_char_p
# A shell command that runs inside captured_errors() may load files, which captures what EPICS says of them.
_capturing = threading.RLock()
_LISTENER: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p)


class IocState(IntEnum):
    """iocInit.h: ``enum iocStateEnum``."""

    VOID = 0
    BUILDING = 1
    BUILT = 2
    RUNNING = 3
    PAUSED = 4


class _Captured:
    """EPICS' output to standard error."""

    text = ""
    #: an error will carry the text, so it need not be passed on
    is_reported = False

    @property
    def plain(self) -> str:
        """The messages, one per line, without colours and blank lines."""
        return plain(self.text)


def flush_output() -> None:
    """Flush the buffers of Python and C for standard output and standard error."""
    sys.stdout.flush()
    sys.stderr.flush()
    _c.errlogFlush()
    flush_streams()


_error_log: int | None = None


def keep_errors_in_place(error_log: int) -> None:
    """Leave EPICS' output in standard error, which is a readable file here: it survives a crash of the process.

    Args:
        error_log: the descriptor of a second readable file, for the error log.

    """
    global _error_log  # noqa: PLW0603 - standard error is one per process
    _error_log = error_log
    print_errors_to(open_stream(error_log))


def output_so_far() -> tuple[int, ...]:
    """Return where EPICS' output in standard error and in the error log ends now, after :func:`keep_errors_in_place`."""
    flush_output()
    return tuple(os.fstat(each).st_size for each in _kept_files())


def output_since(marks: tuple[int, ...]) -> str:
    """Return EPICS' output since :func:`output_so_far`, that of its error log first."""
    flush_output()
    return "".join(map(written, _kept_files(), marks))


def _kept_files() -> tuple[int, int]:
    assert _error_log is not None
    return _error_log, 2


@contextmanager
def captured_errors() -> Iterator[_Captured]:
    """Collect what EPICS writes to standard error (file descriptor 2) inside the block, its error log first.

    The parser prints with ``fprintf(stderr)``, which no listener of errlog sees, so the descriptor itself
    is redirected for a moment. The error log prints in a thread of its own, which would come in the middle of a line
    of the parser: it gets a file of its own. At the end the text is passed on, unless the block reports it.
    """
    captured = _Captured()
    if _error_log is not None:
        with _capturing:
            before = output_so_far()
            yield captured
            captured.text = output_since(before)
        return
    with _capturing, memory_stream() as (log, log_stream), memory_stream() as (printed, _):
        flush_output()
        saved = os.dup(2)
        os.dup2(printed, 2)
        try:
            with errors_printed_to(log_stream):
                yield captured
        finally:
            flush_output()
            os.dup2(saved, 2)
            os.close(saved)
            captured.text = written(log) + written(printed)
            if captured.text and not captured.is_reported:
                os.write(2, visible(without_colours(captured.text)).encode("utf-8", "replace"))


def _run(function: Callable[[], int]) -> str | None:
    """Call into EPICS; return its output if the returned status is not zero, otherwise None."""
    with captured_errors() as captured:
        status = function()
        captured.is_reported = status != 0
    return None if not status else captured.plain or status_text(status)


@contextmanager
def heard_errors() -> Iterator[_Captured]:
    """Collect the messages of EPICS' error log inside the block; they are also printed as usual (errlogAddListener)."""
    captured = _Captured()

    def listen(_private: int, message: bytes) -> None:
        captured.text += message.decode("utf-8", "replace")

    listener = _LISTENER(listen)
    address = ctypes.cast(listener, ctypes.c_void_p)
    flush_output()
    _c.errlogAddListener(address, None)
    try:
        yield captured
    finally:
        flush_output()
        _c.errlogRemoveListeners(address, None)


def _call(why: str, file: str | None, function: Callable[[], int]) -> None:
    said = _run(function)
    if said is not None:
        raise complaint(said, why, file)


_booted = False
_kept: list[object] = []


def keep(*things: object) -> None:
    """Keep objects that C code points to until the process ends."""
    _kept.extend(things)


def boot(
    definition: Path | str | None = None,
    extra: Iterable[Path | str] = (),
    *,
    channel_access: bool = False,
    declared: str = "",
) -> None:
    """Load the database definition and register record types, devices, links and shell commands.

    Args:
        definition: a ``.dbd`` file to load instead of the standard record types (softIoc's ``-D``).
        extra: more ``.dbd`` files; what they declare must be in the loaded libraries or registered before
            with :mod:`.callbacks`.
        channel_access: start the Channel Access server with :func:`ioc_init` (``rsrv``).
        declared: definition text that is loaded first; what a file declares again does not count.

    Raises:
        ConfigurationError: a definition cannot be read, or names support that does not exist; the text is
            what EPICS printed.

    """
    global _booted  # noqa: PLW0603 - EPICS' database is a singleton of the process
    if _booted:
        raise ApplianceError("EPICS' database is already loaded in this process")
    _booted = True
    atexit.register(shutdown)
    folder = _c.epics_base() / "dbd"
    search = f"{folder}:.".encode()
    teach_words()
    _c.iocshRegisterCommon()
    if declared:
        load_definition_text(declared)
    files: list[str] = []
    if definition is not None:
        files.append(str(definition))
    else:
        files.extend(DEFINITIONS)
        if channel_access:
            files.append("rsrv.dbd")
    for name in [*files, *map(str, extra)]:
        load_definition(name, search=search)
    register_support()


def load_definition(file: Path | str, *, search: bytes | None = None, macros: str | None = None) -> None:
    """Load one more ``.dbd`` file (dbLoadDatabase); only before :func:`ioc_init`."""
    name = str(file)
    path = search if search is not None else str(_c.epics_base() / "dbd").encode()
    _call(
        "cannot load the database definition",
        name,
        lambda: int(_c.dbLoadDatabase(os.fsencode(name), path, None if macros is None else _c.raw(macros))),
    )


def load_definition_text(definition: str) -> None:
    """Load database definition text, for instance a ``device()`` line."""
    with tempfile.NamedTemporaryFile("w", suffix=".dbd", encoding="utf-8") as file:
        file.write(definition + "\n")
        file.flush()
        load_definition(file.name)


def register_support() -> None:
    """Register the C support of everything that is declared so far (registerAllRecordDeviceDrivers)."""
    _call(
        "cannot register record and device support",
        None,
        lambda: int(_c.registerAllRecordDeviceDrivers(_c.pdbbase())),
    )


def macro_text(macros: Mapping[str, str]) -> str:
    """Return macros as EPICS writes them, ``A=1,B="x, y"``.

    Raises:
        ConfigurationError: macLib does not accept a name or a value.

    """
    parts: list[str] = []
    for name, value in macros.items():
        if not name or not re.fullmatch(r"[^\s=,\"'\\$(){}]+", name):
            raise ConfigurationError("is not a usable name of a macro", key=repr(name))
        if "\n" in value or "\0" in value:
            raise ConfigurationError("a macro's value must be one line", key=name)
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        parts.append(f'{name}="{quoted}"' if re.search(r"[\s,\"'\\]", value) else f"{name}={value}")
    return ",".join(parts)


def load_records(path: Path | str, macros: Mapping[str, str] | str | None = None) -> None:
    """Load a record database (dbLoadRecords).

    Args:
        path: the ``.db`` file; a relative one is also looked for in ``EPICS_DB_INCLUDE_PATH``.
        macros: values for ``$(NAME)``, or EPICS' own text ``A=1,B=2``.

    Raises:
        ConfigurationError: EPICS refused; the text is its message with file and line.

    """
    if ioc_state() is not IocState.VOID:
        raise ConfigurationError("records must be loaded before the IOC is initialised", file=str(path))
    values = macros if isinstance(macros, str) or macros is None else macro_text(macros)
    _call(
        "cannot load the database",
        str(path),
        lambda: int(_c.dbLoadRecords(os.fsencode(path), None if values is None else _c.raw(values))),
    )


def load_template(path: Path | str, macros: str | None = None) -> None:
    """Load a substitution file (dbLoadTemplate); arguments and errors are those of :func:`load_records`."""
    _call(
        "cannot load the substitution file",
        str(path),
        lambda: int(_c.dbLoadTemplate(os.fsencode(path), None if macros is None else _c.raw(macros))),
    )


def load_records_text(records: str, macros: Mapping[str, str] | str | None = None) -> None:
    """Load records from text, for the records of a program itself."""
    with tempfile.NamedTemporaryFile("w", suffix=".db", encoding="utf-8") as file:
        file.write(records + "\n")
        file.flush()
        load_records(file.name, macros)


def ioc_state() -> IocState:
    """Return the state of the IOC (getIocState)."""
    return IocState(_c.getIocState())


def ioc_init() -> None:
    """Initialise all records and start scanning (iocInit); EPICS prints its banner to standard output.

    Raises:
        ConfigurationError: EPICS refused; the text is what it printed. A record whose own initialisation
            fails is no error here: EPICS reports it on standard error and continues.

    """
    # Printed at once: records that fail or hang here must leave a trace.
    with heard_errors() as heard:
        status = _c.iocInit()
    if status:
        said = heard.plain or status_text(status)
        raise ConfigurationError(f"the IOC cannot be initialised: {said}")


def build_isolated() -> None:
    """Initialise without servers and without Channel Access links, and scan nothing (iocBuildIsolated)."""
    _call("the IOC cannot be initialised", None, lambda: int(_c.iocBuildIsolated()))


def set_access_file(path: str) -> None:
    """Name the file that :func:`ioc_init` reads for EPICS Base's own access security (asSetFilename).

    From now on rules use the address of a client (``asCheckClientIP``), not the host name that it claims.
    """
    _c.asCheckClientIP.value = 1
    _c.asSetSubstitutions(None)
    _c.asSetFilename(os.fsencode(path))


def init_access_security() -> None:
    """Make EPICS read that file again (asInit).

    Raises:
        ApplianceError: EPICS refused the file; the former rules stay in force.
    """
    said = _run(lambda: int(_c.asInit()))
    if said is not None:
        raise ApplianceError(said)


def shutdown() -> None:
    """Stop scan threads and run EPICS' exit handlers (epicsExitCallAtExits); safe to call twice.

    Channels and event hubs must be closed before. :func:`boot` makes sure that it runs before Python ends: an
    EPICS thread that calls a Python function of a finished interpreter would hang the process.
    """
    give_errors_back()
    _c.epicsExitCallAtExits()
    flush_output()


def expand_environment(text: str) -> str:
    """Replace ``$(NAME)`` and ``${NAME}`` by variables as C code sees them."""

    def value(match: re.Match[str]) -> str:
        found = environment_value(match[1] or match[2])
        return match.group() if found is None else found

    return re.sub(r"\$(?:\((\w+)\)|\{(\w+)\})", value, text)


def environment_value(name: str) -> str | None:
    """Return a variable as C code sees it: ``epicsEnvSet`` in a script does not reach ``os.environ``."""
    value = _libc.getenv(name.encode())
    return None if value is None else _c.text(value)


def shell_command(command: str) -> None:
    """Run one line of the IOC shell (iocshCmd); its output goes to standard output.

    Raises:
        ApplianceError: the command is unknown or failed; the text is EPICS' output.

    """
    said = _run(lambda: int(_c.iocshCmd(_c.raw(command))))
    if said is not None:
        raise ApplianceError(f"iocsh: {command}: {said}")
