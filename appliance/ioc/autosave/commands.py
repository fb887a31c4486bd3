"""The commands of autosave, as start scripts of other IOCs use them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from appliance.errors import ApplianceError, ConfigurationError
from appliance.ioc import dbcore
from appliance.ioc.autosave.files import Folders, write_text
from appliance.ioc.autosave.restoring import Restorer
from appliance.ioc.autosave.savefile import requested
from appliance.ioc.autosave.saving import SHORTEST_S, Saver, SaveSet
from appliance.ioc.dbcore import InitHook
from appliance.ioc.macros import parse_macros

__all__ = ["Autosave"]

_WITHOUT_EFFECT: Final = {
    "save_restoreSet_Debug": "there are no levels: failures are logged always",
    "save_restoreSet_status_prefix": "there are no status PVs: save_restoreShow tells the state",
    "save_restoreSet_UseStatusPVs": "there are no status PVs: save_restoreShow tells the state",
    "save_restoreSet_CAReconnect": "values are read from this IOC's records, without Channel Access",
    "save_restoreSet_CallbackTimeout": "values are read from this IOC's records, without Channel Access",
    "set_saveTask_priority": "saving runs in a thread of its own without a priority",
}
"""Settings of autosave that have no effect here. Their use is reported, but is not a failure."""


class Autosave:
    """autosave's commands; one instance per IOC. The shell's thread calls them; another thread saves.

    Args:
        is_trial: only check the arguments; do not save or write anything.

    """

    def __init__(self, *, is_trial: bool = False) -> None:
        self._is_trial = is_trial
        self.is_past_init = False
        """Whether a trial has come to iocInit, which it runs last."""
        self._made: set[str] = set()
        """The request files that commands make."""
        self._folders = Folders()
        self._saver = Saver(self._folders)
        self._restorer = Restorer(self._folders)

    # -- commands ------------------------------------------------------------------------------------

    def register_commands(self) -> None:
        """Add the commands to the shell; call this after :func:`.dbcore.boot`."""
        add = dbcore.register_command
        path: list[tuple[str, type]] = [("path", str), ("subpath", str)]
        file: list[tuple[str, type]] = [("file", str), ("macros", str)]
        timed: list[tuple[str, type]] = [("file", str), ("seconds", int), ("macros", str)]
        add(
            "set_requestfile_path",
            path,
            self._add_request_path,
            "Add a directory where request files are searched.\n",
        )
        add("set_savefile_path", path, self._set_save_path, "Set the directory of the save files.\n")
        for number in (0, 1):
            what = "Restore a save file with iocInit, " + ("before" if number == 0 else "after")
            add(
                f"set_pass{number}_restoreFile",
                file,
                lambda name, macros, number=number: self._add_restore(name, macros, is_late=number == 1),
                f"{what} records are initialised.\n",
            )
        for verb in ("create", "reload"):
            add(
                f"{verb}_monitor_set",
                timed,
                self._monitor,
                "Save when a value has changed, at most once in this many seconds.\n",
            )
            add(f"{verb}_periodic_set", timed, self._periodic, "Save once in this many seconds.\n")
            add(
                f"{verb}_triggered_set",
                [("file", str), ("trigger", str), ("macros", str)],
                self._triggered,
                "Save when the trigger's value changes.\n",
            )
            add(f"{verb}_manual_set", file, self._manual, "Save only when manual_save is called.\n")
        add("remove_data_set", file[:1], self._remove, "Stop saving this set.\n")
        add("manual_save", file[:1], self._save_now, "Save a set now.\n")
        add(
            "fdbrestore",
            file[:1],
            self._restore_now,
            "Put the values of a save file into the running records.\n",
        )
        add(
            "fdbrestoreX",
            file,
            self._restore_now,
            "Put the values of a save file, with macros, into the running records.\n",
        )
        add("dbrestoreShow", [], self._show, "Show what was restored and what is saved.\n")
        add("save_restoreShow", [("level", int)], self._show, "Show what was restored and what is saved.\n")
        add(
            "makeAutosaveFileFromDbInfo",
            [("file", str), ("info", str)],
            self._make_request,
            "Make a request file from info items.\n",
        )
        add(
            "makeAutosaveFiles",
            [],
            self._make_requests,
            "Make info_settings.req and info_positions.req from info items.\n",
        )
        add(
            "save_restoreSet_IncompleteSetsOk",
            [("ok", int)],
            self._set_incomplete,
            "0: do not restore a file that lacks values of some PVs.\n",
        )
        add(
            "save_restoreSet_FilePermissions",
            [("mode", int)],
            self._set_mode,
            "Set the mode of save files; the default is 0664.\n",
        )
        add(
            "save_restoreSet_RetrySeconds",
            [("seconds", int)],
            self._set_retry,
            "Set the seconds until the next try after a failure.\n",
        )
        add(
            "save_restoreSet_NumSeqFiles",
            [("number", int)],
            self._set_copies,
            "Set how many older copies are kept.\n",
        )
        add(
            "save_restoreSet_SeqPeriodInSeconds",
            [("seconds", int)],
            self._set_copy_period,
            "Set the seconds between two of these copies.\n",
        )
        add(
            "save_restoreSet_DatedBackupFiles",
            [("dated", int)],
            self._set_dated,
            "1: keep what a start finds with its date; 0, the default: as .bu until the next start.\n",
        )
        add(
            "save_restoreSet_periodicDatedBackups",
            [("minutes", int)],
            self._set_dated_period,
            "Write a copy with its date of each set once in this many minutes; 0: none.\n",
        )
        add(
            "set_savefile_name",
            [("file", str), ("savefile", str)],
            self._rename,
            "Save the set of this request file in another file.\n",
        )
        for name, why in _WITHOUT_EFFECT.items():
            add(
                name,
                [("value", str)],
                lambda _value, name=name, why=why: dbcore.shell_print(f"{name} has no effect: {why}"),
            )

    def _add_request_path(self, path: str | None, subpath: str | None) -> None:
        self._folders.requests.append(_joined(path, subpath))

    def _set_save_path(self, path: str | None, subpath: str | None) -> None:
        self._folders.saves = _joined(path, subpath)
        # A service manager may make this directory just before the start.
        if not self._is_trial and not Path(self._folders.saves).is_dir():
            raise ConfigurationError(
                "is not a directory; create it and let this IOC write to it", file=self._folders.saves
            )

    def _add_restore(self, file: str | None, macros: str | None, *, is_late: bool) -> None:
        if self.is_past_init or dbcore.ioc_state() is not dbcore.IocState.VOID:
            raise ApplianceError(
                "call it before iocInit, which restores the files; fdbrestore restores a file now"
            )
        self._restorer.add(_given(file, "a save file"), macros or "", is_late=is_late)

    def _monitor(self, file: str | None, seconds: int, macros: str | None) -> None:
        self._add(file, macros, period=max(seconds, SHORTEST_S), only_changes=True)

    def _periodic(self, file: str | None, seconds: int, macros: str | None) -> None:
        self._add(file, macros, period=max(seconds, SHORTEST_S))

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
        names = requested(request, parse_macros(macros or ""), self._folders.read_request, parse_macros)
        if self._is_trial:
            return
        if not names:
            raise ConfigurationError("names no PVs", file=request)
        self._saver.add(SaveSet(request, names, period=period, trigger=trigger, only_changes=only_changes))

    def _remove(self, file: str | None) -> None:
        self._saver.remove(_given(file, "a request file"))

    def _save_now(self, file: str | None) -> None:
        self._saver.save_now(_given(file, "a request file"))

    def _restore_now(self, file: str | None, macros: str | None = None) -> None:
        if dbcore.ioc_state() is not dbcore.IocState.RUNNING:
            raise ApplianceError(
                "the IOC is not running yet; use set_pass0_restoreFile or set_pass1_restoreFile"
            )
        self._restorer.restore_now(_given(file, "a save file"), macros or "")

    def _set_incomplete(self, ok: int) -> None:
        self._restorer.incomplete_is_good = bool(ok)

    def _set_mode(self, mode: int) -> None:
        if not 0 < mode <= 0o777 or mode & 0o002:
            raise ApplianceError(
                f"mode {mode:o}: give an octal number from 0400 to 0775 without write permission for others"
            )
        self._saver.mode = mode

    def _set_retry(self, seconds: int) -> None:
        self._saver.retry_s = float(max(seconds, 1))

    def _set_copies(self, number: int) -> None:
        self._saver.copies = min(max(number, 0), 10)

    def _set_copy_period(self, seconds: int) -> None:
        self._saver.copy_s = float(max(seconds, 10))

    def _set_dated(self, is_dated: int) -> None:
        self._restorer.keeps_all = bool(is_dated)

    def _set_dated_period(self, minutes: int) -> None:
        self._saver.dated_s = 60.0 * max(minutes, 0)

    def _rename(self, file: str | None, name: str | None) -> None:
        request, name = _given(file, "a request file"), _given(name, "a save file")
        if not self._is_trial:
            self._saver.rename(request, name)

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
        write_text(Path(path), "\n".join([*lines, ""]), self._saver.mode)

    def _show(self, _level: int = 0) -> None:
        for line in (*self._restorer.lines(), *self._saver.lines()):
            dbcore.shell_print(line)

    # -- life ----------------------------------------------------------------------------------------

    def on_init(self, state: int) -> None:
        """Handle a state of iocInit: files are restored in two of them."""
        if state == InitHook.AFTER_INIT_DEVICE_SUPPORT:
            self._restorer.restore_named(is_late=False)
        elif state == InitHook.AFTER_INIT_DATABASE:
            self._restorer.restore_named(is_late=True)
        elif state == InitHook.AFTER_IOC_RUNNING and not self._is_trial:
            self._saver.start()

    def close(self) -> None:
        """Save all changes and end; the database must still be there."""
        self._saver.close()


def _given(text: str | None, what: str) -> str:
    if not text or "\0" in text:
        raise ApplianceError(f"the argument is missing: give {what}")
    return text


def _joined(path: str | None, subpath: str | None) -> str:
    return os.path.join(path or "", subpath) if subpath else path or ""  # noqa: PTH118 - text in, text out
