"""The files that are loaded before iocInit, in order, for the IOC and for the trial in a child process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from appliance.errors import ApplianceError, ConfigurationError
from appliance.ioc import dbcore, locate
from appliance.ioc.access import read_access_file
from appliance.ioc.config import LoadStep, Plan, is_substitutions
from appliance.ioc.dbcore.link_support import declaration
from appliance.ioc.demo import DEMO_DEFINITION, register_demo
from appliance.ioc.groups.config import DefinitionOrigin
from appliance.ioc.groups.definitions import read_group_file
from appliance.ioc.libraries import SiteLibraries
from appliance.ioc.links.all_links import AllLinks
from appliance.ioc.reread import Reread
from appliance.ioc.script import ScriptRunner
from appliance.ioc.stats import SHIPPED

__all__ = ["Loading"]

_OWN_DEFINITIONS: Final = frozenset(
    ("base.dbd", "softIoc.dbd", "softIocPVA.dbd", "softIocPVX.dbd", "qsrv.dbd", "pvxsIoc.dbd")
)
"""The definitions of the IOCs whose place this one takes."""
_BEFORE: Final = "before iocInit; EPICS accepts no records afterwards"


class Loading:
    """Loads files; one per process. ``guard`` checks each file that no trial has seen before EPICS' parser reads it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.access_step = plan.acf
        """The access security file that iocInit and asInit read."""
        self.group_files = list(plan.groups)
        self.loaded: list[LoadStep] = []
        """Databases and substitution files, in this order."""
        self.warnings: list[str] = []
        """What EPICS ignores in substitution files; not told yet."""
        self.macros = ""
        """The macros of ``asSetSubstitutions``."""
        self.guard: Callable[[LoadStep], None] | None = None
        self.script = ScriptRunner(on_error=plan.on_error)
        self.links = AllLinks()
        """The PVA links of the records."""
        self.libraries = SiteLibraries(plan.libraries)
        self.is_past_init = False
        """Whether a trial has come to iocInit: it reads the commands after it, and initialises then."""
        self._unused_access: tuple[str, tuple[str, int]] | None = None
        """The file of an ``asSetFilename`` after iocInit that no asInit has followed, and its place in a script."""
        self.reread = Reread()
        """Records that have the access security file read again."""

    # -- the plan ------------------------------------------------------------------------------------

    def definition(self) -> None:
        """Load the database definition.

        Raises:
            ConfigurationError: The definition cannot be read, or it is wrong.
        """
        plan = self.plan
        if plan.template_names:
            dbcore.set_most_template_names(plan.template_names)
        register_demo()
        self.reread.register()
        self._say(f'dbLoadDatabase("{plan.definition or "softIoc.dbd"}")')
        dbcore.boot(plan.definition or None, channel_access=plan.channel_access, declared=declaration("pva"))
        self.links.register()
        dbcore.load_definition_text(DEMO_DEFINITION)
        dbcore.register_support()

    def site_code(self, *, is_trial: bool) -> None:
        """Load the site's own device support; a trial runs none of its code.

        Raises:
            ConfigurationError: A library or a definition file cannot be used.
        """
        self.libraries.check()
        if is_trial:
            self.libraries.stand_in()
            return
        for step in self.libraries.steps:
            self._say(f'dlload("{step.file}")')
        self.libraries.load()

    def files(self) -> None:
        """Read access security and groups, then load the databases.

        Raises:
            ConfigurationError: A database or a group file cannot be read, or it is wrong.
            AccessFileError: The access security file cannot be read, or it is wrong.
        """
        plan = self.plan
        if plan.acf is not None:
            self._say(f'asSetFilename("{plan.acf.file}")')
            read_access_file(plan.acf)
        for group in plan.groups:
            read_group_file(group)
        for step in plan.databases:
            command = "dbLoadTemplate" if is_substitutions(step.file) else "dbLoadRecords"
            self._say(f'{command}("{step.file}"{f", {step.macros!r}" if step.macros else ""})')
            self.load(step)
        if plan.stats_prefix:
            self.load(LoadStep(str(SHIPPED / "iocStats.db"), dbcore.macro_text({"IOC": plan.stats_prefix})))
        if plan.exit_prefix:
            dbcore.load_records_text(dbcore.EXIT_RECORDS, {"IOC": plan.exit_prefix})

    def load(self, step: LoadStep, *, as_template: bool | None = None) -> None:
        """Load one database or substitution file.

        Raises:
            ConfigurationError: The file cannot be read, or it is wrong, or iocInit has run already.
        """
        if self._is_initialised():
            raise ConfigurationError(f"must be loaded {_BEFORE}", file=step.file)
        if "/" not in step.file and not locate.exists(step.file) and (SHIPPED / step.file).is_file():
            step = step._replace(file=str(SHIPPED / step.file))
        template = is_substitutions(step.file) if as_template is None else as_template
        found = locate.read_substitutions(step, most_names=dbcore.most_template_names()) if template else None
        if found is not None:
            self.warnings.extend(found.warnings)
        if step.file.endswith((".proto", ".protocol")):
            raise ConfigurationError(
                "is a protocol file of StreamDevice, which this IOC does not have; databases load no protocols",
                file=step.file,
            )
        if self.guard is not None:
            self.guard(step)
        self.loaded.append(step)
        try:
            if template:
                dbcore.load_template(step.file, step.macros or None)
            else:
                dbcore.load_records(step.file, step.macros or None)
        except ConfigurationError as error:
            error = locate.better(error, step)
            raise error if found is None else locate.loaded_by(error, step, found) from None

    def _say(self, text: str) -> None:
        if self.plan.is_verbose:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()

    # -- shell ---------------------------------------------------------------------------------------

    def register_commands(self) -> None:
        """Add the commands of the shell that load; after :meth:`definition`, so that they replace those of EPICS."""
        add = dbcore.register_command
        both: list[tuple[str, type]] = [("file", str), ("macros", str)]
        add(
            "dbLoadRecords",
            both,
            self._load_records,
            'Load a record database: "file.db", "MACRO=value,...".\n',
        )
        add(
            "dbLoadTemplate",
            both,
            self._load_template,
            'Load a substitution file: "file.substitutions", "MACRO=value,...".\n',
        )
        add(
            "dbLoadDatabase",
            [("file", str), ("path", str), ("macros", str)],
            self._load_definition,
            'Load a definition file: "file.dbd", "folder:folder", "MACRO=value,...".\n',
        )
        add("asSetSubstitutions", [("macros", str)], self._set_macros, "Macros for asSetFilename.\n")
        add(
            "asSetFilename",
            [("file", str)],
            self._set_filename,
            "Access security file; in force with iocInit or asInit.\n",
        )
        # EPICS' own command would be forgotten with the next file, whose complaints are always read.
        add("eltc", [("on/off", int)], dbcore.want_errors, "Show EPICS' error messages: 0 no, 1 yes.\n")
        add("dbLoadGroup", both, self._load_group, 'Load group definitions; "-file" or "-*" removes.\n')

    def _load_records(self, file: str | None, macros: str | None) -> None:
        if not file:
            raise ApplianceError('usage: dbLoadRecords("file.db", "MACRO=value,...")')
        self.load(LoadStep(file, macros or ""), as_template=False)

    def _load_template(self, file: str | None, macros: str | None) -> None:
        if not file:
            raise ApplianceError('usage: dbLoadTemplate("file.substitutions", "MACRO=value,...")')
        self.load(LoadStep(file, macros or ""), as_template=True)

    @staticmethod
    def _load_definition(file: str | None, path: str | None, macros: str | None) -> None:
        if not file:
            raise ApplianceError('usage: dbLoadDatabase("file.dbd")')
        search = path or dbcore.environment_value("EPICS_DB_INCLUDE_PATH") or "."
        name = dbcore.expand_environment(file)
        # As EPICS: a name with a slash is not searched. Many scripts give 0 as the path.
        folders = [""] if "/" in name else search.split(":")
        if not any(Path(folder, name).is_file() for folder in folders):
            if Path(name).name in _OWN_DEFINITIONS:
                dbcore.shell_print(f"dbLoadDatabase: {name}: what it defines is loaded already")
                return
            where = "" if "/" in name else f" in {search}"
            raise ApplianceError(
                f"dbLoadDatabase: there is no definition file {name!r}{where}; remove the line if it names the definition of "
                "another IOC: the record types of EPICS Base are loaded already, and C code comes with 'libraries'"
            )
        dbcore.load_definition(name, search=search.encode("utf-8", "surrogateescape"), macros=macros)

    def _set_macros(self, macros: str | None) -> None:
        self.macros = macros or ""

    def _set_filename(self, file: str | None) -> None:
        step = LoadStep(file, self.macros) if file else None
        is_late = self._is_initialised()
        if step is not None and (not is_late or self.is_past_init):
            # A command that fails here ends a start script at its line; iocInit or asInit reads the file again.
            read_access_file(step)
        self._unused_access = (step.file, self.script.where) if step is not None and is_late else None
        self.access_step = step

    def access_used(self) -> None:
        """Note that asInit has read the file that ``asSetFilename`` has named."""
        self._unused_access = None

    def check_access(self) -> None:
        """Refuse a script at whose end an access security file is named and not in force.

        Raises:
            ConfigurationError: The script named it after iocInit, and did not run asInit.
        """
        if self._unused_access is None:
            return
        file, (script, line) = self._unused_access
        error = ConfigurationError(
            f"asSetFilename: the rules of {file} are not in force: write it before iocInit, or asInit after it",
            file=script,
            line=line,
        )
        if self.script.on_error == "stop":
            raise error
        self.script.failed(error)

    def _is_initialised(self) -> bool:
        return self.is_past_init or dbcore.ioc_state() is not dbcore.IocState.VOID

    def _load_group(self, file: str | None, macros: str | None) -> None:
        if not file:
            raise ApplianceError('usage: dbLoadGroup("file.json", "MACRO=value,...")')
        if self._is_initialised():
            raise ApplianceError("groups must be loaded before iocInit")
        if file.startswith("-"):
            self._forget_groups(file[1:], macros or "")
        else:
            step = LoadStep(file, macros or "")
            read_group_file(step)
            self._forget_groups(file, macros or "")
            self.group_files.append(step)

    def _forget_groups(self, file: str, macros: str) -> None:
        self.group_files = [
            step for step in self.group_files if file != "*" and (step.file, step.macros) != (file, macros)
        ]

    # -- places --------------------------------------------------------------------------------------

    def place(self, origin: DefinitionOrigin | None, near: str = "") -> locate.FileLine | None:
        """Return file and line of a part of a group definition."""
        if origin is None:
            return None
        if origin.file is not None:
            return locate.FileLine(origin.file, origin.line) if origin.line else None
        assert origin.record is not None
        return locate.find(self.loaded, origin.record, "info(Q:group)", near)
