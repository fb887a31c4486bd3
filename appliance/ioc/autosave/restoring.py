"""Restores save files: in the two passes of iocInit, or while the IOC runs."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from appliance.errors import ApplianceError, ConfigurationError
from appliance.ioc import dbcore
from appliance.ioc.autosave.files import Folders, dated, read_text, write_text
from appliance.ioc.autosave.savefile import parse_saved
from appliance.ioc.macros import parse_macros

__all__ = ["Restorer"]

_log: Final = logging.getLogger("appliance.ioc.autosave")
_KEPT: Final = ".bu"
_DATED: Final = re.compile(r"_\d{6}-\d{6}")
_MODE: Final = 0o664


class _Named(NamedTuple):
    """A save file that is restored with iocInit."""

    file: str
    macros: str
    is_late: bool
    """Whether it is restored after records are initialised, and not before."""


class Restorer:
    """Restores save files, and keeps the results for the report."""

    def __init__(self, folders: Folders) -> None:
        self.incomplete_is_good = True
        """Whether to restore files that lack values of some PVs."""
        self.keeps_all = False
        """Whether what a start finds is kept with its date, and not only until the next start."""
        self._folders = folders
        self._named: list[_Named] = []
        self._told: dict[_Named, str] = {}
        self._kept: set[Path] = set()

    def add(self, file: str, macros: str, *, is_late: bool) -> None:
        """Restore a file with iocInit, before or after records are initialised."""
        self._named.append(_Named(file, macros, is_late))

    def restore_named(self, *, is_late: bool) -> None:
        """Restore the files of one of the two passes; failures are logged."""
        for named in self._named:
            if named.is_late is not is_late:
                continue
            try:
                told = self._restore(
                    named.file,
                    named.macros,
                    lambda name, value: dbcore.restore(name, value, is_late=is_late),
                    keeps=True,
                )
            except ApplianceError as error:
                told = f"not restored: {error}"
                _log.warning("autosave: %s", told)
            self._told[named] = told

    def restore_now(self, file: str, macros: str) -> None:
        """Put the values of a file into running records.

        Raises:
            ApplianceError: The file cannot be read, or it is not complete.
        """
        self._restore(file, macros, _put)

    def lines(self) -> list[str]:
        """Return a report of the restored files."""
        return [
            f"restored {'after' if named.is_late else 'before'} initialisation: {named.file}: {told}"
            for named, told in self._told.items()
        ]

    def _restore(
        self,
        file: str,
        macros: str,
        put: Callable[[str, str | tuple[str, ...]], bool],
        *,
        keeps: bool = False,
    ) -> str:
        path, text = self._newest(file)
        if keeps:
            self._keep(Path(self._folders.saves, file), text)
        saved = parse_saved(text, parse_macros(macros), file=str(path))
        if saved.missing and not self.incomplete_is_good:
            raise ConfigurationError(
                f"{saved.missing} PVs had no value when the file was written, and save_restoreSet_IncompleteSetsOk(0) forbids such files",
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

    def _keep(self, path: Path, text: str) -> None:
        """Keep what a start restores, as autosave does: if that fails, the first saves would soon replace all copies of it."""
        if path in self._kept:
            return
        self._kept.add(path)
        kept = dated(path, "_") if self.keeps_all else path.with_name(path.name + _KEPT)
        fresh = path.with_name(kept.name + ".new")
        try:
            if self.keeps_all and _is_kept(path, text):
                # An IOC that is started again and again fills no disk.
                return
            write_text(fresh, text, _MODE)
            fresh.replace(kept)
        except (ApplianceError, OSError) as error:
            _log.warning("autosave: what %s holds is not kept beside it: %s", path, error)

    def _newest(self, file: str) -> tuple[Path, str]:
        """Read a save file; if it is damaged, read the backup beside it or the newest copy."""
        path = Path(self._folders.saves, file)
        copies = sorted(
            (each for number in range(10) if (each := path.with_name(f"{path.name}{number}")).is_file()),
            key=lambda each: -each.stat().st_mtime,
        )
        first: ApplianceError | None = None
        for each in (path, path.with_name(path.name + "B"), *copies):
            try:
                text = read_text(each, "the save file")
                parse_saved(text, {}, file=str(each))
            except ApplianceError as error:
                first = first or error
            else:
                if first is not None:
                    _log.warning("autosave: %s; %s is restored instead", first, each)
                return each, text
        assert first is not None
        raise first


def _is_kept(path: Path, text: str) -> bool:
    """Whether the newest dated copy of a save file has this text."""
    copies = sorted(
        each
        for each in path.parent.iterdir()
        if each.name.startswith(path.name) and _DATED.fullmatch(each.name[len(path.name) :])
    )
    return bool(copies) and read_text(copies[-1], "the dated copy") == text


def _put(name: str, value: str | tuple[str, ...]) -> bool:
    dbcore.put_saved(name, value)
    return True
