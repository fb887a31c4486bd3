"""Logging for daemons and tools: readable on a terminal, fields in the journal, JSON lines elsewhere.

An extra field ``event`` names in one word what has happened, for searches; the others say to whom and what.

Importing this costs as much as the standard library's logging (10 ms), so tools import it only to log.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, TextIO

from appliance.daemon.names import identified

if TYPE_CHECKING:
    from appliance.daemon.journal import JournalSender

__all__ = ["Redactor", "add_levels", "configure", "faults_of_level", "level_spec", "redact", "reset_levels"]

ROOT: Final = "appliance"
_FORMAT = Literal["auto", "text", "json"]
# PVXS's names (src/log.h) beside ours.
_LEVELS: Final = {
    "CRIT": logging.CRITICAL,
    "CRITICAL": logging.CRITICAL,
    "ERR": logging.ERROR,
    "ERROR": logging.ERROR,
    "WARN": logging.WARNING,
    "WARNING": logging.WARNING,
    "INFO": logging.INFO,
    "DEBUG": logging.DEBUG,
}
# PVXS logger names that people have in their scripts, and the part of this package that does the same.
_PVXS: Final = {
    "pvxs.auth": "appliance.authn",
    "pvxs.certs": "appliance.certmon",
    "pvxs.cli": "appliance.client",
    "pvxs.client": "appliance.client",
    "pvxs.config": "appliance.config",
    "pvxs.ioc": "appliance.ioc",
    "pvxs.ossl": "appliance.tls",
    "pvxs.server": "appliance.server",
    "pvxs.stapling": "appliance.certmon",
    "pvxs.svr": "appliance.server",
    "pvxs.tcp": "appliance.transport",
    "pvxs.udp": "appliance.transport",
}
_SECRETS: Final = (
    # A JWT: three base64url parts, of which the first encodes '{"'. Its beginning stays, to tell tokens apart.
    (re.compile(r"(?<![\w-])eyJ[\w-]{2,}\.[\w-]+(?:\.[\w-]*)?(?:\.[\w-]*){0,2}"), "eyJ***"),
    (
        re.compile(
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
        ),
        "*** private key ***",
    ),
    (re.compile(r"(?i)\b(bearer\s+)[^\s,;&\"']+"), r"\1***"),
    # FILE;PASSWORD, as a variable may name a keychain: up to the end of the quotes, or of the word.
    (re.compile(r"(?i)(\"[^\"\n;]*\.(?:p12|pfx);)[^\"\s][^\"\n]*"), r"\1***"),
    (re.compile(r"(?i)('[^'\n;]*\.(?:p12|pfx);)[^'\s][^'\n]*"), r"\1***"),
    (re.compile(r"(?i)(\.(?:p12|pfx);)(?!\*\*\*)[^\s\"'(),]+"), r"\1***"),
    (re.compile(r"(?i)(_TLS_KEYCHAIN\b[\"'\s=:,(]{0,8}[^;\"'\s=,]{0,512};)[^\"'\s][^\"'\n]*"), r"\1***"),
)
# The name may have parts before it (access_token, clientSecret) and quotes around it.
_NAMED: Final = re.compile(
    # pkcs11:token= names a token, and is none.
    r"(?i)(password|passwd|pwd|secret|(?<!pkcs11:)token)([\"']?\s*[=:]\s*)(?:\"([^\"]*)\"?|'([^']*)'?|([^\s,;&\"']+))"
)
_SENTENCE: Final = re.compile(r"[A-Za-z]{1,15},? [A-Za-z0-9'\"/(]")
_LONGEST_PATH: Final = 512
_LONGEST: Final = 32768
"""Greatest length of a message: a peer that is quoted in one must not fill the disk."""
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _is_clean(text: str) -> bool:
    """Whether one look tells that none of the patterns above finds anything: so it is with nearly all texts."""
    if not text.isascii():  # beyond ASCII there are other letters that count as these
        return False
    small = text.lower()
    # A loop would take several times as long.
    return not (
        "eyj" in small
        or "private key" in small
        or "bearer" in small
        or "password" in small
        or "passwd" in small
        or "pwd" in small
        or "secret" in small
        or "token" in small
        or (";" in small and (".p12;" in small or ".pfx;" in small or "_tls_keychain" in small))
    )


def redact(text: str) -> str:
    """Return text without tokens and private keys. This is the second protection; the first is not to log them at all."""
    if _is_clean(text):
        return text
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return _NAMED.sub(_without_value, text)


def _without_value(found: re.Match[str]) -> str:
    """Return a match of `_NAMED` without the secret; as it is if a file or a program has this name and a sentence follows."""
    name, between = found[1], found[2]
    if found[5] is not None and between == ": ":
        start = found.start()
        before = found.string[max(0, start - _LONGEST_PATH) : start].rpartition(" ")[2]
        is_file = "/" in before or before.endswith(".") or (before.endswith("-") and name == "token")
        if is_file and _SENTENCE.match(found.string, found.start(5)):
            return found[0]
    quote = '"' if found[3] is not None else "'" if found[4] is not None else ""
    return f"{name}{between}{quote}***{quote}"


class Redactor(logging.Filter):
    """Takes secrets out of a record's message, arguments, extra fields and exception before anything formats it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Remove secrets from a record; always keep it."""
        more = [
            (key, value)
            for key, value in vars(record).items()
            if key not in _STANDARD and isinstance(value, str)
        ]
        try:
            text = record.getMessage()
            whole = "\n".join([text, *[value for _, value in more]])
            if not record.exc_info and len(whole) <= _LONGEST and _is_clean(whole):
                record.msg, record.args = identified(text), None
                return True
            record.msg = identified(redact(text))
        except Exception:  # noqa: BLE001 - a wrong log call must not take the daemon down
            record.msg = redact(f"{record.msg} (wrong arguments)")
        if len(record.msg) > _LONGEST:
            record.msg = f"{record.msg[:_LONGEST]}... ({len(record.msg)} characters)"
        record.args = None
        if record.exc_info:
            record.exc_text = redact(logging.Formatter().formatException(record.exc_info))
            record.exc_info = None
        for key, value in more:
            setattr(record, key, redact(value)[:_LONGEST])
        return True


_JSON: Final = json.JSONEncoder(default=str, ensure_ascii=False)


@lru_cache(maxsize=2)
def _second(at: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))


class _Text(logging.Formatter):
    def __init__(self, *, color: bool, journal: bool) -> None:
        super().__init__()
        self.color = color
        self.journal = journal

    def format(self, record: logging.LogRecord) -> str:
        name = record.name.removeprefix(ROOT + ".")
        text = f"{record.levelname:<8} {name}: {_body(record)}{_pairs(record)}"
        if self.journal:
            # The journal has the time, and needs the level in front of every line.
            return _journal(record, text)
        millis = int(record.msecs)
        stamp = _second(int(record.created))
        if self.color and record.levelno >= logging.WARNING:
            text = f"\x1b[{31 if record.levelno >= logging.ERROR else 33}m{text}\x1b[0m"
        return f"{stamp}.{millis:03d}Z {text}"


class _Json(logging.Formatter):
    def __init__(self, *, journal: bool) -> None:
        super().__init__()
        self.journal = journal

    def format(self, record: logging.LogRecord) -> str:
        stamp = _second(int(record.created))
        fields: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_text:
            fields["exception"] = record.exc_text
        text = _JSON.encode(fields)
        return _journal(record, text) if self.journal else text


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def one_line(message: str) -> str:
    """Return a message without control characters: peers choose parts of it, and could write lines and colours with them."""
    if message.isprintable():
        return message
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in message)


def _body(record: logging.LogRecord) -> str:
    message = one_line(record.getMessage())
    return f"{message}\n{record.exc_text}" if record.exc_text else message


def _pairs(record: logging.LogRecord) -> str:
    if "event" in vars(record):
        # The message says the same to human readers.
        return ""
    pairs = " ".join(f"{key}={value!r}" for key, value in _extra(record).items())
    return f" [{pairs}]" if pairs else ""


def _priority(level: int) -> int:
    return 2 if level >= 50 else 3 if level >= 40 else 4 if level >= 30 else 6 if level >= 20 else 7


def _journal(record: logging.LogRecord, text: str) -> str:
    priority = _priority(record.levelno)
    return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))


class _Gathering(logging.StreamHandler[TextIO]):
    """Writes what is logged in one turn of the event loop at its end, in one piece; warnings and worse at once.

    In each write other threads of the process run, and this one has to wait for its turn again.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: list[str] = []
        self._loop: object = None
        """The event loop that will write them."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.append(self.format(record) + self.terminator)
            if record.levelno >= logging.WARNING or not self._comes_later():
                self.flush()
        except Exception:  # noqa: BLE001 - a record that cannot be written must not take the daemon down
            self.handleError(record)

    def _comes_later(self) -> bool:
        """Whether the event loop will write the lines."""
        events = sys.modules.get("asyncio.events")
        loop = None if events is None else events._get_running_loop()
        if loop is None:
            return False
        if self._loop is not loop:
            self._loop = loop
            loop.call_soon(self.flush)
        return True

    def flush(self) -> None:
        self.acquire()
        try:
            lines, self._lines, self._loop = self._lines, [], None
            if lines:
                self.stream.write("".join(lines))
        finally:
            self.release()
        super().flush()


class _Native(logging.StreamHandler[TextIO]):
    """Sends fields to journald; what it does not take goes to the stream, as a JSON line."""

    def __init__(self, stream: TextIO, sender: JournalSender) -> None:
        super().__init__(stream)
        self.setFormatter(_Json(journal=True))
        self.sender = sender

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sent = self.sender.record(record, _priority(record.levelno), _body(record), _extra(record))
        except Exception:  # noqa: BLE001 - a record that cannot be sent must not take the daemon down
            sent = False
        if not sent:
            super().emit(record)

    def close(self) -> None:
        self.sender.close()
        super().close()


def level_spec(spec: str) -> tuple[dict[str, int], list[str]]:
    """Read ``pvxs.*=DEBUG,appliance.tls=INFO`` or a bare level.

    Names of PVXS mean the part of this package that does the same work; ``pvxs.*`` and ``*`` are all of it.

    Returns:
        Levels by logger, and a sentence for each fault.
    """
    levels: dict[str, int] = {}
    faults = []
    for part in re.split(r"[,\s]+", spec.strip()):
        if not part:
            continue
        name, equals, word = part.rpartition("=")
        level = _LEVELS.get(word.upper())
        if level is None or (equals and not name):
            faults.append(
                f"log level {part!r} ignored: expected NAME=LEVEL with a level of {', '.join(_LEVELS)}"
            )
            continue
        levels[_logger_name(name)] = level
    return levels, faults


def faults_of_level(spec: str) -> list[str]:
    """Return what is wrong with a `level_spec` of a configuration file, which is refused then."""
    return [
        f"{part!r} is no log level; write one of {', '.join(_LEVELS)}, or NAME=LEVEL"
        for part in re.split(r"[,\s]+", spec.strip())
        if level_spec(part)[1]
    ]


def _logger_name(pattern: str) -> str:
    name = pattern.rstrip("*").rstrip(".")
    if name in {"", "pvxs"}:
        return ROOT
    prefix = ".".join(name.split(".")[:2])
    if prefix in _PVXS:
        return _PVXS[prefix]
    if name.startswith("pvxs."):
        return ROOT
    return name if name == ROOT or name.startswith(ROOT + ".") else f"{ROOT}.{name}"


def configure(
    level: str = "WARNING",
    fmt: _FORMAT = "auto",
    *,
    stream: TextIO | None = None,
    environ: Mapping[str, str] | None = None,
    journal_socket: str = "",
    gathers: bool = False,
) -> list[str]:
    """Send this package's log to stderr.

    May be called again, for example on a reload.

    Args:
        level: A specification as in `level_spec`; $PVXS_LOG refines it.
        fmt: ``auto`` is text on a terminal, journald's own protocol if stderr is the journal, JSON lines elsewhere. Other
            lines to the journal have their level in front.
        stream: Where to write; by default stderr.
        environ: The variables; by default the process's.
        journal_socket: The socket to use instead of journald's.
        gathers: Write the lines of one turn of the event loop together. A process that is killed may lose those of its last
            turn, except warnings and errors.

    Returns:
        Faults of the level specifications, for the caller to show.
    """
    environ = os.environ if environ is None else environ
    stream = sys.stderr if stream is None else stream
    journal = _is_journal(stream, environ)
    terminal = stream.isatty()
    handler: logging.StreamHandler[TextIO] = (_Gathering if gathers else logging.StreamHandler)(stream)
    if fmt == "auto" and journal:
        from appliance.daemon.journal import SOCKET, JournalSender

        handler = _Native(stream, JournalSender(journal_socket or SOCKET))
    elif fmt == "text" or (fmt == "auto" and terminal):
        handler.setFormatter(_Text(color=terminal and "NO_COLOR" not in environ, journal=journal))
    else:
        handler.setFormatter(_Json(journal=journal))
    handler.addFilter(Redactor())
    root = logging.getLogger()
    for former in root.handlers[:]:
        if getattr(former, "of_appliance", False):
            root.removeHandler(former)
            if isinstance(former, _Native):
                former.close()
            else:
                with contextlib.suppress(ValueError):  # the program has closed the stream
                    former.flush()
    handler.of_appliance = True  # type: ignore[attr-defined]
    root.addHandler(handler)
    logging.raiseExceptions = False
    # Nobody shows these, and each line would pay for finding them.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    return reset_levels(level) + add_levels(environ.get("PVXS_LOG", ""))


def add_levels(spec: str) -> list[str]:
    """Set the levels that a `level_spec` names, beside those that are set already; return a sentence for each fault."""
    levels, faults = level_spec(spec)
    for name, number in levels.items():
        logging.getLogger(name).setLevel(number)
    return faults


_levels = [""]
"""What `configure` was told."""


def reset_levels(level: str | None = None) -> list[str]:
    """Set the levels of a specification and no others; by default that of `configure`. Return a sentence for each fault."""
    if level is not None:
        _levels[0] = level
    manager = logging.Logger.manager
    for name in [name for name in manager.loggerDict if name.startswith(ROOT + ".")]:
        logging.getLogger(name).setLevel(logging.NOTSET)
    logging.getLogger(ROOT).setLevel(logging.WARNING)
    return add_levels(_levels[0])


def _is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether the stream is the journal.

    $JOURNAL_STREAM is ``device:inode`` of its socket; children inherit the variable, but not always the socket.
    """
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
