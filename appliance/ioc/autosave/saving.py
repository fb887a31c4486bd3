"""Sets of PVs that are saved: when a value has changed, regularly, on a trigger, or on demand."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from pathlib import Path
from typing import Any, Final

from appliance.errors import ApplianceError, ConfigurationError
from appliance.ioc.autosave.files import Folders, dated, write_text
from appliance.ioc.autosave.savefile import format_saved
from appliance.ioc.dbcore import DBChannel

__all__ = ["SHORTEST_S", "SaveSet", "Saver"]

_log: Final = logging.getLogger("appliance.ioc.autosave")
_PROGRAM: Final = "save/restore V5.11"
"""Readers look for V and a version: from version 1.8 on they expect the end to be marked."""
_SUFFIX: Final = ".sav"
SHORTEST_S: Final = 1.0
"""The least seconds between two checks of a set."""


class SaveSet:
    """The PVs of one request file, and when they are saved."""

    def __init__(
        self,
        request: str,
        names: list[str],
        *,
        period: float = 0.0,
        trigger: str = "",
        only_changes: bool = False,
    ) -> None:
        self.request = request
        self.file = (
            request.rpartition(".")[0] + _SUFFIX if "." in request.rpartition("/")[2] else request + _SUFFIX
        )
        self.names = names
        self.period = period
        """Seconds between two saves; 0: only on demand or by the trigger."""
        self.trigger = trigger
        self.only_changes = only_changes
        self.channels: dict[str, DBChannel | None] = {}
        self.saved: object = None
        self.triggered: object = None
        self.due = 0.0
        self.next_copy = 0.0
        self.next_dated: float | None = None
        self.copies = 0
        self.state = "not saved yet"

    def when(self) -> str:
        """Return when the set is saved, as text for people."""
        if self.period:
            return f"every {self.period:g} s"
        return f"when {self.trigger} changes" if self.trigger else "by manual_save"

    def close(self) -> None:
        """Close the channels."""
        for channel in self.channels.values():
            if channel is not None:
                channel.close()
        self.channels.clear()


class Saver:
    """Saves sets, most of them in its own thread. All methods can be called in any thread."""

    def __init__(self, folders: Folders) -> None:
        self.mode = 0o664
        """Mode of new save files."""
        self.retry_s = 60.0
        """Seconds until the next try after a failure."""
        self.copies = 3
        """How many older copies are kept."""
        self.copy_s = 60.0
        """Seconds between two copies."""
        self.dated_s = 0.0
        """Seconds between two copies with their date, which are never removed; 0: none."""
        self._folders = folders
        self._sets: dict[str, SaveSet] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._ended = False

    def add(self, one: SaveSet) -> None:
        """Add a set; it replaces a set with the same request file."""
        with self._lock:
            if (old := self._sets.pop(one.request, None)) is not None:
                old.close()
            self._sets[one.request] = one
        self._wake.set()

    def remove(self, request: str) -> None:
        """Stop saving a set.

        Raises:
            ApplianceError: There is no such set.
        """
        with self._lock:
            self._set_of(request).close()
            del self._sets[request]

    def save_now(self, request: str) -> None:
        """Save a set now.

        Raises:
            ApplianceError: There is no such set, or its file cannot be written.
        """
        with self._lock:
            self._save(self._set_of(request))

    def rename(self, request: str, file: str) -> None:
        """Save a set in another file.

        Raises:
            ApplianceError: There is no such set.
        """
        with self._lock:
            found = self._set_of(request)
            # What has not changed since is to be in the new file, too.
            found.file, found.saved = file, None

    def _set_of(self, request: str) -> SaveSet:
        found = self._sets.get(request)
        if found is None:
            raise ApplianceError(f"there is no set {request}; there are {', '.join(self._sets) or 'none'}")
        return found

    def lines(self) -> list[str]:
        """Return a report of the state of all sets."""
        with self._lock:
            return [
                f"saved {each.when()}: {each.file}: {len(each.names)} PVs, {each.state}"
                for each in self._sets.values()
            ]

    def start(self) -> None:
        """Save from now on."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="autosave", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._ended:
            now = time.monotonic()
            with self._lock:
                for each in self._sets.values():
                    if not self._ended and now >= each.due:
                        self._look(each, now)
                    if self.dated_s and not self._ended:
                        self._keep_dated(each, now)
                due = min((each.due for each in self._sets.values()), default=now + SHORTEST_S)
            self._wake.wait(max(min(due - time.monotonic(), SHORTEST_S), 0.01))
            self._wake.clear()

    def _look(self, each: SaveSet, now: float) -> None:
        each.due = now + (each.period or SHORTEST_S)
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
            each.due = now + self.retry_s
            each.state = f"not saved: {error}"
            _log.error("autosave: %s: %s; the next try is in %.0f s", each.file, error, self.retry_s)
        except Exception:  # noqa: BLE001 - saving goes on
            each.due = now + self.retry_s
            _log.exception("autosave: %s", each.file)

    def _keep_dated(self, each: SaveSet, now: float) -> None:
        """Write a copy with its date, if it is time for one."""
        if each.next_dated is None or now < each.next_dated:
            each.next_dated = each.next_dated or now + self.dated_s
            return
        each.next_dated = now + self.dated_s
        path = dated(Path(self._folders.saves, each.file), "_b_")
        try:
            write_text(
                path, self._text_of([(name, self._value(each, name)) for name in each.names]), self.mode
            )
        except ApplianceError as error:
            _log.error("autosave: %s", error)

    @staticmethod
    def _text_of(values: list[tuple[str, str | tuple[str, ...] | None]]) -> str:
        return format_saved(values, program=_PROGRAM, written=time.strftime("%Y-%m-%d %H:%M:%S"))

    def _save(self, each: SaveSet, *, only_changes: bool = False) -> None:
        values = [(name, self._value(each, name)) for name in each.names]
        if only_changes and values == each.saved:
            return
        path = Path(self._folders.saves, each.file)
        text = self._text_of(values)
        before = path.with_name(path.name + "B")
        fresh = path.with_name(path.name + ".new")
        write_text(fresh, text, self.mode)
        try:
            if path.exists():
                path.replace(before)
            fresh.replace(path)
            now = time.monotonic()
            if self.copies and now >= each.next_copy:
                each.next_copy = now + self.copy_s
                shutil.copyfile(path, path.with_name(f"{path.name}{each.copies % self.copies}"))
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

    def _value(self, each: SaveSet, name: str) -> str | tuple[str, ...] | None:
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
        """Save all changes and end; the database must still be there."""
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
