"""The commands of autosave: values that are saved while the IOC runs and restored when it starts.

A small implementation of our own, since autosave is C code for an IOC that is built from source. Files have its format, so
those that another IOC has written are read here and the other way round (:mod:`.savefile`). Only records of this IOC are saved.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from appliance.errors import ApplianceError, ConfigurationError
from appliance.ioc import dbcore
from appliance.ioc.dbcore import DBChannel, InitHook
from appliance.ioc.macros import parse_macros
from appliance.ioc.savefile import format_saved, parse_saved, requested

__all__ = ["Autosave"]

_log: Final = logging.getLogger(__name__)
_LIMIT: Final = 64 << 20
_PROGRAM: Final = "save/restore V5.11"
"""Readers look for V and a version: from 1.8 on they want the end to be marked."""
_SUFFIX: Final = ".sav"
_SHORTEST_S: Final = 1.0
_WITHOUT_EFFECT: Final = {
    "save_restoreSet_Debug": "there are no levels: failures are logged always",
    "save_restoreSet_DatedBackupFiles": "there are no dated backups: .savB and .sav0, .sav1 ... are kept",
    "save_restoreSet_periodicDatedBackups": "there are no dated backups: .savB and .sav0, .sav1 ... are kept",
    "save_restoreSet_status_prefix": "there are no status PVs: save_restoreShow tells the state",
    "save_restoreSet_UseStatusPVs": "there are no status PVs: save_restoreShow tells the state",
    "save_restoreSet_CAReconnect": "values are read from this IOC's records, without Channel Access",
    "save_restoreSet_CallbackTimeout": "values are read from this IOC's records, without Channel Access",
    "set_saveTask_priority": "saving runs in a thread of its own without a priority",
}
"""Settings of autosave that mean nothing here: told when they are used, and no failure."""


class _Set:
    """The PVs of one request file, and when they are saved."""

    def __init__(
        self, request: str, names: list[str], *, period: float, trigger: str, only_changes: bool
    ) -> None:
        self.request = request
        self.file = (
            request.rpartition(".")[0] + _SUFFIX if "." in request.rpartition("/")[2] else request + _SUFFIX
        )
        self.names = names
        self.period = period
        """Seconds; 0: only on demand or by its trigger."""
        self.trigger = trigger
        self.only_changes = only_changes
        self.channels: dict[str, DBChannel | None] = {}
        self.saved: object = None
        self.triggered: object = None
        self.due = 0.0
        self.next_copy = 0.0
        self.copies = 0
        self.state = "not saved yet"

    def close(self) -> None:
        for channel in self.channels.values():
            if channel is not None:
                channel.close()
        self.channels.clear()


class Autosave:
    """One per IOC. Commands come from the shell's thread; a thread of its own saves."""

    def __init__(self, *, is_trial: bool = False) -> None:
        self._is_trial = is_trial
        self._made: set[str] = set()
        self._request_path: list[str] = []
        self._save_path = ""
        self._restores: tuple[list[tuple[str, str]], list[tuple[str, str]]] = ([], [])
        self._restored: dict[tuple[int, str], str] = {}
        self._sets: dict[str, _Set] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._ended = False
        self._incomplete_is_good = True
        self._mode = 0o664
        self._retry_s = 60.0
        self._copies = 3
        self._copy_s = 60.0

    # -- commands ------------------------------------------------------------------------------------

    def register_commands(self) -> None:
        """Add them to the shell; after :func:`.dbcore.boot`."""
        add = dbcore.register_command
        path: list[tuple[str, type]] = [("path", str), ("subpath", str)]
        file: list[tuple[str, type]] = [("file", str), ("macros", str)]
        timed: list[tuple[str, type]] = [("file", str), ("seconds", int), ("macros", str)]
        add("set_requestfile_path", path, self._add_request_path, "Where request files are looked for.\n")
        add("set_savefile_path", path, self._set_save_path, "Where save files are.\n")
        for number in (0, 1):
            what = "Restore a save file with iocInit, " + ("before" if number == 0 else "after")
            add(
                f"set_pass{number}_restoreFile",
                file,
                lambda name, macros, number=number: self._add_restore(number, name, macros),
                f"{what} records are initialised.\n",
            )
        for verb in ("create", "reload"):
            add(
                f"{verb}_monitor_set",
                timed,
                self._monitor,
                "Save when a value has changed, this often at the most.\n",
            )
            add(f"{verb}_periodic_set", timed, self._periodic, "Save this often.\n")
            add(
                f"{verb}_triggered_set",
                [("file", str), ("trigger", str), ("macros", str)],
                self._triggered,
                "Save when the trigger's value changes.\n",
            )
            add(f"{verb}_manual_set", file, self._manual, "Save with manual_save only.\n")
        add("remove_data_set", file[:1], self._remove, "Save this set no more.\n")
        add("manual_save", file[:1], self._save_now, "Save a set now.\n")
        add(
            "fdbrestore",
            file[:1],
            self._restore_now,
            "Put the values of a save file into the running records.\n",
        )
        add("fdbrestoreX", file, self._restore_now, "Likewise, with macros.\n")
        add("dbrestoreShow", [], self._show, "What was restored and what is saved.\n")
        add("save_restoreShow", [("level", int)], self._show, "What was restored and what is saved.\n")
        add(
            "makeAutosaveFileFromDbInfo",
            [("file", str), ("info", str)],
            self._make_request,
            "Make a request file of info items.\n",
        )
        add(
            "makeAutosaveFiles",
            [],
            self._make_requests,
            "Make info_settings.req and info_positions.req of info items.\n",
        )
        add(
            "save_restoreSet_IncompleteSetsOk",
            [("ok", int)],
            self._set_incomplete,
            "0: restore no file in which PVs were missing.\n",
        )
        add(
            "save_restoreSet_FilePermissions",
            [("mode", int)],
            self._set_mode,
            "Mode of save files, 0664 unless set.\n",
        )
        add(
            "save_restoreSet_RetrySeconds",
            [("seconds", int)],
            self._set_retry,
            "When to try again after a failure.\n",
        )
        add(
            "save_restoreSet_NumSeqFiles",
            [("number", int)],
            self._set_copies,
            "How many older copies are kept.\n",
        )
        add(
            "save_restoreSet_SeqPeriodInSeconds",
            [("seconds", int)],
            self._set_copy_period,
            "How often they are made.\n",
        )
        for name, why in _WITHOUT_EFFECT.items():
            add(
                name,
                [("value", str)],
                lambda _value, name=name, why=why: dbcore.shell_print(f"{name} has no effect: {why}"),
            )

    def _add_request_path(self, path: str | None, subpath: str | None) -> None:
        self._request_path.append(_joined(path, subpath))

    def _set_save_path(self, path: str | None, subpath: str | None) -> None:
        self._save_path = _joined(path, subpath)
        # A service manager may make it just before the start.
        if not self._is_trial and not Path(self._save_path).is_dir():
            raise ConfigurationError("is no directory: make it, writable for this IOC", file=self._save_path)

    def _add_restore(self, number: int, file: str | None, macros: str | None) -> None:
        if dbcore.ioc_state() is not dbcore.IocState.VOID:
            raise ApplianceError("files are restored with iocInit: name them before; fdbrestore restores now")
        self._restores[number].append((_given(file, "a save file"), macros or ""))

    def _monitor(self, file: str | None, seconds: int, macros: str | None) -> None:
        self._add(file, macros, period=max(seconds, _SHORTEST_S), only_changes=True)

    def _periodic(self, file: str | None, seconds: int, macros: str | None) -> None:
        self._add(file, macros, period=max(seconds, _SHORTEST_S))

    def _triggered(self, file: str | None, trigger: str | None, macros: str | None) -> None:
        self._add(file, macros, trigger=_given(trigger, "the PV that triggers"))

    def _manual(self, file: str | None, macros: str | None) -> None:
        self._add(file, macros)

    def _add(
        self,
        file: str | None,
        macros: str | None,
        *,
        period: float = 0.0,
        trigger: str = "",
        only_changes: bool = False,
    ) -> None:
        request = _given(file, "a request file")
        if self._is_trial and request in self._made:
            return
        names = requested(request, parse_macros(macros or ""), self._read_request, parse_macros)
        if self._is_trial:
            return
        if not names:
            raise ConfigurationError("names no PVs", file=request)
        with self._lock:
            if (old := self._sets.pop(request, None)) is not None:
                old.close()
            self._sets[request] = _Set(
                request, names, period=period, trigger=trigger, only_changes=only_changes
            )
        self._wake.set()

    def _remove(self, file: str | None) -> None:
        with self._lock:
            self._set_of(file).close()
            del self._sets[_given(file, "a request file")]

    def _set_of(self, file: str | None) -> _Set:
        found = self._sets.get(_given(file, "a request file"))
        if found is None:
            raise ApplianceError(f"there is no set {file}; there are {', '.join(self._sets) or 'none'}")
        return found

    def _save_now(self, file: str | None) -> None:
        with self._lock:
            self._save(self._set_of(file))

    def _restore_now(self, file: str | None, macros: str | None = None) -> None:
        if dbcore.ioc_state() is not dbcore.IocState.RUNNING:
            raise ApplianceError(
                "the IOC does not run yet: use set_pass0_restoreFile or set_pass1_restoreFile"
            )
        self._restore(_given(file, "a save file"), macros or "", _put)

    def _set_incomplete(self, ok: int) -> None:
        self._incomplete_is_good = bool(ok)

    def _set_mode(self, mode: int) -> None:
        if not 0 < mode <= 0o777 or mode & 0o002:
            raise ApplianceError(
                f"mode {mode:o}: give an octal number from 0400 to 0775 that lets not everybody write"
            )
        self._mode = mode

    def _set_retry(self, seconds: int) -> None:
        self._retry_s = float(max(seconds, 1))

    def _set_copies(self, number: int) -> None:
        self._copies = min(max(number, 0), 10)

    def _set_copy_period(self, seconds: int) -> None:
        self._copy_s = float(max(seconds, 10))

    def _make_requests(self) -> None:
        self._make_request("info_settings.req", "autosaveFields")
        self._make_request("info_positions.req", "autosaveFields_pass0")

    def _make_request(self, file: str | None, info: str | None) -> None:
        path = _given(file, "a request file")
        path = path if path.endswith(".req") else path + ".req"
        self._made.add(path)
        if self._is_trial:
            return
        lines = [
            f"{record}.{field}"
            for record, fields in dbcore.info_items(_given(info, "an info item"))
            for field in fields.split()
        ]
        _write(Path(path), "\n".join([*lines, ""]), self._mode)

    def _show(self, _level: int = 0) -> None:
        for (number, file), state in self._restored.items():
            dbcore.shell_print(
                f"restored {'before' if number == 0 else 'after'} initialisation: {file}: {state}"
            )
        with self._lock:
            for each in self._sets.values():
                when = (
                    f"every {each.period:g} s"
                    if each.period
                    else f"when {each.trigger} changes"
                    if each.trigger
                    else "by manual_save"
                )
                dbcore.shell_print(f"saved {when}: {each.file}: {len(each.names)} PVs, {each.state}")

    # -- restoring -----------------------------------------------------------------------------------

    def on_init(self, state: int) -> None:
        """Tell of a state of iocInit: files are restored in two of them."""
        if state == InitHook.AFTER_INIT_DEVICE_SUPPORT:
            self._pass(0)
        elif state == InitHook.AFTER_INIT_DATABASE:
            self._pass(1)
        elif state == InitHook.AFTER_IOC_RUNNING:
            self._start()

    def _pass(self, number: int) -> None:
        for file, macros in self._restores[number]:
            try:
                told = self._restore(
                    file, macros, lambda name, value: dbcore.restore(name, value, is_late=number == 1)
                )
            except ApplianceError as error:
                told = f"not restored: {error}"
                _log.warning("autosave: %s", told)
            self._restored[number, file] = told

    def _restore(self, file: str, macros: str, put: Callable[[str, str | tuple[str, ...]], bool]) -> str:
        path, text = self._newest(file)
        saved = parse_saved(text, parse_macros(macros), file=str(path))
        if saved.missing and not self._incomplete_is_good:
            raise ConfigurationError(
                f"{saved.missing} PVs had no value when it was written, and save_restoreSet_IncompleteSetsOk(0) is set",
                file=str(path),
            )
        done = failed = 0
        for name, value in saved.values:
            try:
                done += put(name, value)
            except ApplianceError as error:
                failed += 1
                _log.warning("autosave: %s: %s", path, error)
        told = f"{done} values from {path}" + (f", {failed} failed" if failed else "")
        _log.info("autosave: restored %s", told)
        return told

    def _newest(self, file: str) -> tuple[Path, str]:
        """A save file, or where it is damaged the backup beside it, or the newest copy."""
        path = Path(self._save_path, file)
        copies = sorted(
            (each for number in range(10) if (each := path.with_name(f"{path.name}{number}")).is_file()),
            key=lambda each: -each.stat().st_mtime,
        )
        first: ApplianceError | None = None
        for each in (path, path.with_name(path.name + "B"), *copies):
            try:
                text = _read(each, "the save file")
                parse_saved(text, {}, file=str(each))
            except ApplianceError as error:
                first = first or error
            else:
                if first is not None:
                    _log.warning("autosave: %s; %s is restored instead", first, each)
                return each, text
        assert first is not None
        raise first

    # -- saving --------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._thread is None and not self._is_trial:
            self._thread = threading.Thread(target=self._run, name="autosave", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._ended:
            now = time.monotonic()
            with self._lock:
                for each in self._sets.values():
                    if not self._ended and now >= each.due:
                        self._look(each, now)
                due = min((each.due for each in self._sets.values()), default=now + _SHORTEST_S)
            self._wake.wait(max(min(due - time.monotonic(), _SHORTEST_S), 0.01))
            self._wake.clear()

    def _look(self, each: _Set, now: float) -> None:
        each.due = now + (each.period or _SHORTEST_S)
        try:
            if each.trigger:
                with DBChannel(each.trigger) as channel:
                    value = channel.get().value
                if each.triggered is not None and value != each.triggered:
                    self._save(each)
                each.triggered = value
            elif each.period:
                self._save(each, only_changes=each.only_changes)
        except ApplianceError as error:
            each.due = now + self._retry_s
            each.state = f"not saved: {error}"
            _log.error("autosave: %s: %s; the next try is in %.0f s", each.file, error, self._retry_s)
        except Exception:  # noqa: BLE001 - saving goes on
            each.due = now + self._retry_s
            _log.exception("autosave: %s", each.file)

    def _save(self, each: _Set, *, only_changes: bool = False) -> None:
        values = [(name, self._value(each, name)) for name in each.names]
        if only_changes and values == each.saved:
            return
        path = Path(self._save_path, each.file)
        text = format_saved(values, program=_PROGRAM, written=time.strftime("%Y-%m-%d %H:%M:%S"))
        before = path.with_name(path.name + "B")
        fresh = path.with_name(path.name + ".new")
        _write(fresh, text, self._mode)
        try:
            if path.exists():
                path.replace(before)
            fresh.replace(path)
            now = time.monotonic()
            if self._copies and now >= each.next_copy:
                each.next_copy = now + self._copy_s
                shutil.copyfile(path, path.with_name(f"{path.name}{each.copies % self._copies}"))
                each.copies += 1
        except OSError as error:
            raise ConfigurationError(
                f"cannot be written: {error.strerror or error}", file=str(path)
            ) from None
        each.saved = values
        missing = sum(value is None for _, value in values)
        each.state = f"saved {time.strftime('%Y-%m-%d %H:%M:%S')}" + (
            f", {missing} without a value" if missing else ""
        )

    def _value(self, each: _Set, name: str) -> str | tuple[str, ...] | None:
        channel = each.channels.get(name)
        if channel is None:
            if name in each.channels:
                return None
            try:
                channel = DBChannel(name)
            except ApplianceError as error:
                _log.warning("autosave: %s: %s; only records of this IOC are saved", each.request, error)
                each.channels[name] = None
                return None
            each.channels[name] = channel
        try:
            return _text(channel, channel.get().value)
        except ApplianceError:
            return None

    def close(self) -> None:
        """Save what has changed and end; the database must still be there."""
        self._ended = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            for each in self._sets.values():
                if self._thread is not None and each.period:
                    try:
                        self._save(each, only_changes=True)
                    except ApplianceError as error:
                        _log.error("autosave: %s: %s", each.file, error)
                each.close()
            self._sets.clear()

    # -- files ---------------------------------------------------------------------------------------

    def _read_request(self, file: str) -> tuple[str, str]:
        folders = [""] if file.startswith("/") else self._request_path or [""]
        for folder in folders:
            path = Path(folder, file)
            if path.is_file():
                return str(path), _read(path, "the request file")
        raise ConfigurationError(
            f"there is no such request file in {', '.join(each or 'the current folder' for each in folders)}",
            file=file,
        )


def _given(text: str | None, what: str) -> str:
    if not text or "\0" in text:
        raise ApplianceError(f"name {what}")
    return text


def _joined(path: str | None, subpath: str | None) -> str:
    return os.path.join(path or "", subpath) if subpath else path or ""  # noqa: PTH118 - text in, text out


def _read(path: Path, what: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_LIMIT + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot read {what}: {error.strerror or error}", file=str(path)) from None
    if len(data) > _LIMIT:
        raise ConfigurationError(f"is larger than {_LIMIT} octets", file=str(path))
    return data.decode("utf-8", "surrogateescape")


def _write(path: Path, text: str, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigurationError(f"cannot be written: {error.strerror or error}", file=str(path)) from None


def _text(channel: DBChannel, value: Any) -> str | tuple[str, ...]:
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):
        return value
    if channel.is_array:
        return tuple(_digits(each) for each in value.tolist())
    return _digits(value)


def _digits(value: float) -> str:
    return repr(value) if isinstance(value, float) else str(int(value))


def _put(name: str, value: str | tuple[str, ...]) -> bool:
    with DBChannel(name) as channel:
        new: Any = value
        if isinstance(value, tuple) and channel.is_array and not channel.is_string:
            new = [float(each) for each in value]
        channel.put(new)
    return True
