"""Try a start in a child process first: EPICS Base's parsers crash on some files, and loaded files cannot be unloaded.

The child loads what the plan names, runs the start script up to iocInit, initialises without servers, without Channel Access links
and without processing a record, and makes the groups. It reports each fault as a sentence with file and line. If the child
crashes, the sentence names the file that EPICS Base was reading.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import chdir
from pathlib import Path
from typing import Any, Final, NamedTuple

from appliance.errors import ConfigurationError
from appliance.ioc import dbcore, locate
from appliance.ioc.config import CaPutLogPlan, LibraryStep, LoadStep, Plan, is_substitutions
from appliance.ioc.dbcore.streams import written
from appliance.ioc.dbcore.words import complaint, plain
from appliance.ioc.script import placed

__all__ = ["Trial", "TrialResult", "check_file", "plan_from_json"]

_TIMEOUT_S: Final = 300.0
_SAID: Final = 1 << 20
_MANAGER: Final = ("NOTIFY_", "WATCHDOG_", "LISTEN_", "CREDENTIALS_")
_PACKAGES: Final = str(Path(__file__).parents[2])


class TrialResult(NamedTuple):
    """The result of the child."""

    warnings: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    """EPICS' complaints that do not prevent a start, one sentence each: links, initialisation of records."""
    loaded: frozenset[LoadStep] = frozenset()
    """The files that EPICS' parser read without a crash."""
    left_out: str = ""
    """The reason why the trial ended before iocInit; empty if it reached iocInit."""


def plan_from_json(text: str) -> Plan:
    """Read the plan that :class:`Trial` sends."""
    found: dict[str, Any] = json.loads(text)
    for name in ("databases", "groups"):
        found[name] = tuple(LoadStep(*step) for step in found[name])
    found["libraries"] = tuple(LibraryStep(file, tuple(names)) for file, names in found["libraries"])
    found["ca_put_log"] = CaPutLogPlan(*found["ca_put_log"]) if found["ca_put_log"] else None
    found["acf"] = LoadStep(*found["acf"]) if found["acf"] else None
    return Plan(**found)


class Trial:
    """A running child. The caller can do other work until it calls :meth:`result`."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._is_given_up = False
        # Closed by result().
        self._error_log, self._said = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        # -P: nothing is imported from the current folder.
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "appliance.ioc.trial_child"],
            pass_fds=[self._error_log.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            cwd=plan.folder or None,
            env={
                # The service manager's sockets and settings are for the daemon only.
                **{name: value for name, value in os.environ.items() if not name.startswith(_MANAGER)},
                "PYTHONPATH": _packages(),
            },
        )
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(f"{self._error_log.fileno()}\n{json.dumps(plan._asdict())}".encode())
            self._child.stdin.close()
        except BrokenPipeError:
            pass
        self._child.stdin = None

    def result(self) -> TrialResult:
        """Wait for the child and return what it found.

        Raises:
            ConfigurationError: The plan cannot be started.
        """
        try:
            answer, _ = self._child.communicate(timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise ConfigurationError(
                f"the databases were not loaded within {_TIMEOUT_S:.0f} s; check for a file that never ends, such as a pipe"
            ) from None
        finally:
            self.close()
        if self._is_given_up:
            raise ConfigurationError("the start was given up")
        said = ""
        for file in (self._error_log, self._said):
            with file:
                said += written(file.fileno(), limit=_SAID)
        told = [json.loads(line) for line in answer.decode().splitlines()]
        last = told[-1] if told else {}
        at = LoadStep(*last["reading"]) if "reading" in last else None
        if "running" in last:
            file, line, command = last["running"]
            name = _died(self._child.returncode)
            raise ConfigurationError(f"EPICS Base crashes ({name}) in: {command[:200]}", file=file, line=line)
        if "end" not in last:
            # Names of files are relative to where the script had gone.
            with chdir(last.get("folder") or self._plan.folder or "."):
                error = _crashed(self._child.returncode, at, said)
            ran = next((each["running"] for each in reversed(told) if "running" in each), None)
            if ran is not None and at is not None and at.file != "iocInit":
                raise placed(error, ran[0], ran[1])
            raise error
        end = last["end"]
        if (fault := end.get("error")) is not None:
            raise ConfigurationError(**fault)
        return TrialResult(
            tuple(end["warnings"]),
            tuple(end["faults"]),
            frozenset(LoadStep(*each) for each in end["loaded"]),
            end["left_out"],
        )

    def give_up(self) -> None:
        """End the child, so that :meth:`result`, which another thread may be waiting in, raises at once."""
        self._is_given_up = True
        self.close()

    def close(self) -> None:
        """End the child if it is still running."""
        if self._child.poll() is None:
            self._child.kill()
            self._child.wait()


def _packages() -> str:
    """Return the search path with which the child finds this package, whatever folder it runs in."""
    before = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join(part for part in (_PACKAGES, before) if part)


def _died(status: int) -> str:
    return signal.Signals(-status).name if -status in set(signal.Signals) else f"exit status {status}"


def _crashed(status: int, at: LoadStep | None, said: str) -> ConfigurationError:
    why = f"EPICS Base crashes ({_died(status)})"
    if at is None:
        last = plain(said).splitlines()
        return ConfigurationError(
            f"{why} before anything is loaded: {last[-1] if last else 'there was no output'}"
        )
    if at.file == "iocInit":
        last = plain(said).splitlines()
        return ConfigurationError(
            f"{why} in iocInit; its last line of output: {last[-1] if last else 'none'}"
        )
    error = locate.better(complaint(said, f"{why} when it reads this file", at.file), at)
    return locate.loaded_by(error, at, locate.read_substitutions(at)) if is_substitutions(at.file) else error


def check_file(plan: Plan, step: LoadStep) -> None:
    """Refuse a file on which EPICS' parser crashes; loading the file reports all other faults.

    Raises:
        ConfigurationError: The parser crashes on the file.
    """
    alone = Plan(
        definition=plan.definition,
        libraries=plan.libraries,
        databases=(step,),
        folder=str(Path.cwd()),
        template_names=dbcore.most_template_names() if is_substitutions(step.file) else 0,
    )
    trial = Trial(alone)
    try:
        trial.result()
    except ConfigurationError:
        if trial._child.returncode < 0:
            raise
