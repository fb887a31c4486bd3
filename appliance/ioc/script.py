"""Start scripts, line by line: a failing command is reported with file and line, and ends the start unless ``on_error`` says otherwise.

EPICS Base's own reader of scripts continues after a failure. EPICS still parses and runs each line.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from appliance.daemon.logging import redact
from appliance.errors import ApplianceError, ConfigurationError
from appliance.ioc import dbcore
from appliance.ioc.lines import run_line, undefined_macros, words_of
from appliance.ioc.macros import expand_known, parse_macros

__all__ = ["ScriptRunner", "placed"]

_ENV_PATHS: Final = (
    "; the build of an EPICS application makes it: copy it from where the IOC was built, or write lines such as "
    'epicsEnvSet("TOP", "/path/of/the/IOC") in its place'
)
_LIMIT: Final = 4 << 20
_DEPTH: Final = 16
_INCLUDED: Final = re.compile(r"\s*<\s*([^<>\s]+)\s*$")
_POLICIES: Final = {"continue": "continue", "break": "stop", "halt": "stop"}


class ScriptRunner:
    """Runs scripts; one per process.

    ``before`` gets each command and tells whether to run it: the trial skips commands that act outside the process. ``after`` is
    called when a command has ended, well or not.
    """

    def __init__(self, *, on_error: str = "stop") -> None:
        self.on_error = on_error
        self.before: Callable[[str, list[str]], bool] | None = None
        self.after: Callable[[], None] | None = None
        self.skips_missing = False
        """Whether a script that is not there is no failure: a trial does not run what makes it."""
        self.where: tuple[str, int] = ("", 0)
        """File and line of the command that runs."""
        self.failures: list[ConfigurationError] = []
        """The failures after which the script continued."""
        self.is_stopped = False
        """Whether the IOC ends: no further command is run. Set by any thread."""

    def run(self, path: str) -> None:
        """Run a script; blocks.

        Raises:
            ConfigurationError: A command failed, and failures end the script.
        """
        os.environ.setdefault("IOCSH_STARTUP_SCRIPT", path)
        self._run(path, {}, self.on_error, 0)

    def _run(self, path: str, macros: Mapping[str, str], on_error: str, depth: int) -> None:
        if depth > _DEPTH:
            raise ConfigurationError(f"scripts call each other more than {_DEPTH} deep", file=path)
        for number, raw in enumerate(self._read(path).split("\n"), 1):
            line = expand_known(raw, macros).strip() if macros else raw.strip()
            if not line.startswith("#-"):
                # Standard output of a daemon is its log.
                sys.stdout.write(redact(line) + "\n" if line else "")
            if not line or line.startswith("#"):
                continue
            words = words_of(line)
            if words[:1] == ["exit"] or self.is_stopped:
                break
            if words[:2] == ["on", "error"]:
                on_error = _POLICIES.get(words[2] if len(words) > 2 else "", on_error)
                continue
            self.where = path, number
            try:
                if self.is_script(line, words):
                    self._include(line, words, macros, on_error, depth)
                elif self.before is None or self.before(line, words):
                    sys.stdout.flush()
                    why = run_line(line)
                    if self.after is not None:
                        self.after()
                    if why is not None:
                        raise why
            except ApplianceError as error:
                found = placed(error, path, number)
                if on_error == "stop":
                    raise found from None
                self.failed(found)

    def failed(self, error: ConfigurationError) -> None:
        """Report a failure after which the script continues."""
        dbcore.flush_output()
        sys.stderr.write(f"{error}: the script continues\n")
        self.failures.append(error)

    @staticmethod
    def is_script(line: str, words: list[str]) -> bool:
        """Whether a line runs another script."""
        return words[:1] == ["iocshLoad"] or _INCLUDED.match(line) is not None

    def run_typed(self, line: str, words: list[str]) -> None:
        """Run the script that a line names.

        Raises:
            ConfigurationError: The script cannot be read, a command in it failed, or a macro of the line has no value.
        """
        self._include(line, words, {}, self.on_error, 0)

    def _include(
        self, line: str, words: list[str], macros: Mapping[str, str], on_error: str, depth: int
    ) -> None:
        if why := undefined_macros(line):
            raise ConfigurationError(why)
        given: Mapping[str, str] = macros
        included = _INCLUDED.match(line)
        if included is not None:
            file = included[1].strip('"')
        else:
            if len(words) < 2:
                raise ConfigurationError('usage: iocshLoad("file.cmd", "MACRO=value,...")')
            file = words[1]
            given = {**macros, **(parse_macros(words[2]) if len(words) > 2 else {})}
        path = dbcore.expand_environment(file)
        if self.skips_missing and not Path(path).exists():
            return
        self._run(path, given, on_error, depth + 1)

    @staticmethod
    def _read(path: str) -> str:
        try:
            with Path(path).open("rb") as file:
                data = file.read(_LIMIT + 1)
        except OSError as error:
            hint = _ENV_PATHS if Path(path).name == "envPaths" else ""
            raise ConfigurationError(
                f"cannot read the script: {error.strerror or error}{hint}", file=path
            ) from None
        if len(data) > _LIMIT:
            raise ConfigurationError(f"is larger than {_LIMIT} octets, which no script is", file=path)
        return data.decode("utf-8", "surrogateescape")


def placed(error: ApplianceError, path: str, number: int) -> ConfigurationError:
    """Return the error with the line of the script that caused it."""
    if isinstance(error, ConfigurationError) and error.line is not None:
        if "(run by " in error.why or error.file == path:
            return error
        return ConfigurationError(
            f"{error.why} (run by {path}:{number})", file=error.file, line=error.line, key=error.key
        )
    return ConfigurationError(str(error), file=path, line=number)
