"""The child of :mod:`appliance.ioc.trial`: reads a descriptor for EPICS' error log and a plan from standard input, answers on what was standard output.

It never serves, never processes a record, and leaves out commands of a script that act outside the process.
"""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any, Final, NoReturn

from appliance.errors import ApplianceError, ConfigurationError
from appliance.ioc import dbcore, locate
from appliance.ioc.access import inputs_elsewhere, read_access_file, undefined_groups
from appliance.ioc.afterwards import Afterwards
from appliance.ioc.autosave.commands import Autosave
from appliance.ioc.ca_rules import rules_for_channel_access
from appliance.ioc.config import LoadStep
from appliance.ioc.dbcore import InitHook
from appliance.ioc.dbcore.words import PROTOCOL, device_address, plain
from appliance.ioc.groups.definitions import Groups
from appliance.ioc.lines import REGISTRAR, run_line, words_of
from appliance.ioc.loading import Loading
from appliance.ioc.macros import expand_known, parse_macros
from appliance.ioc.modifiers import ignored
from appliance.ioc.putlog_commands import PUT_LOG_COMMANDS, check_start
from appliance.ioc.shell import SERVER_COMMANDS
from appliance.ioc.trial import plan_from_json

__all__ = ["main"]

_OUTSIDE: Final = frozenset(("system", "epicsThreadSleep", "iocLogInit", "dbLoadGroupTest", "exit"))
"""Commands that the trial does not run."""
_INIT: Final = ("iocInit", "iocBuild")
_LOADS_CODE: Final = "it loads C code (dlload), which a trial must not run"
_FIELD: Final = re.compile(r"\b([^\s.:'\"]\S*?)\.([A-Z][A-Z0-9_]*)\b")
_NO_FUNCTION: Final = re.compile(r"\.[SI]NAM (?:ERROR )?function '.*' not found")
_MOST: Final = 20
_MOST_WORDS: Final = 8
"""Of how many links it is told that EPICS ignores a part."""
_QUICK: Final = 10_000
"""With more records a start does not look at the words of links: 20 us for each record."""


class _Ended(Exception):  # noqa: N818 - no error
    """The script does what a trial must not: the reason is its text."""


class _Child:
    def __init__(self, answer: int) -> None:
        self.answer = answer
        self.loading = Loading(plan_from_json(sys.stdin.read()))
        self.loading.guard = self.reading
        self.loading.script.before = self.before
        self.loading.script.after = self.after
        self.autosave = Autosave(is_trial=True)
        self.warnings: list[str] = []
        self.faults: list[str] = []
        self.before_init: tuple[int, ...] = ()
        self.left_out = ""
        self.commands: frozenset[str] | None = None
        self.ended: _Ended | None = None
        """Why the trial must end with the command that runs now."""
        self.afterwards: Afterwards | None = None
        self.folder = ""
        """Where the script was at iocInit."""

    def tell(self, **what: Any) -> None:
        os.write(self.answer, (json.dumps(what) + "\n").encode())

    def reading(self, step: LoadStep) -> None:
        self.tell(reading=list(step), folder=os.getcwd())  # noqa: PTH109 - for chdir

    def before(self, line: str, words: list[str]) -> bool:
        self.tell(running=[*self.loading.script.where, line])
        if words[:1] and words[0] in _INIT:
            self.begin_afterwards()
            return False
        return self.permits(line, words)

    def permits(self, line: str, words: list[str]) -> bool:
        """Whether a trial runs a command.

        Raises:
            ApplianceError: A start would fail at this command.
            _Ended: The trial must end here.
        """
        unquoted = re.sub(r'"(?:[^"\\]|\\.)*"', "", line)
        if ">" in unquoted or words[:1] in (["system"], ["iocshCmd"], ["iocshRun"]):
            self.loading.script.skips_missing = True
        if self.afterwards is not None:
            makes_files = self.loading.script.skips_missing
            return self.afterwards.runs(line, makes_files=makes_files) and ">" not in unquoted
        if words[:1] == ["dlload"]:
            raise _Ended(_LOADS_CODE)
        if self.loading.libraries.declared and words and self.may_be_site_code(words):
            raise _Ended(f"{words[0]!r} may be a command of C code, which a trial must not run")
        if self.loading.libraries.declared and words[:1] and words[0].endswith(REGISTRAR):
            return False
        return bool(words) and words[0] not in _OUTSIDE and ">" not in unquoted

    def after(self) -> None:
        """End the trial if a command that was not to be seen in its line has asked for it: EPICS replaces macros, and some commands run others.

        Raises:
            _Ended: The trial must end here.
        """
        if self.ended is not None:
            raise self.ended

    def register_stand_ins(self) -> None:
        """Replace the commands that a trial must not run, however a script calls them, and those that run others."""
        add = dbcore.register_command
        for name in _OUTSIDE - {"exit"}:
            add(name, [], lambda: None)
        for name in _INIT:
            add(name, [], self.begin_afterwards)
        add("dlload", [], lambda: self.end_here(_LOADS_CODE))
        add("iocshCmd", [("command", str)], self.run_inner)
        add("iocshRun", [("command", str), ("macros", str)], self.run_inner)

    def begin_afterwards(self) -> None:
        """Note that iocInit is done, as far as the script can see. The trial initialises when it has seen the rest of the script."""
        if self.afterwards is None:
            self.afterwards = Afterwards(self.known_commands(), knows_all=not self.loading.libraries.declared)
            self.loading.is_past_init = self.autosave.is_past_init = True
            self.folder = os.getcwd()  # noqa: PTH109 - for chdir

    def end_here(self, why: str) -> NoReturn:
        self.ended = self.ended or _Ended(why)
        raise ApplianceError(why)

    def run_inner(self, text: str | None, macros: str | None = None) -> None:
        """Run what another command runs."""
        given = parse_macros(macros or "")
        for raw in (text or "").splitlines():
            line = expand_known(raw, given).strip()
            words = words_of(line)
            if not words or line.startswith("#"):
                continue
            if words[0] in _INIT:
                self.begin_afterwards()
                continue
            try:
                runs = self.permits(line, words)
            except _Ended as why:
                self.end_here(str(why))
            if runs and (failure := run_line(line)) is not None:
                raise failure

    def site_code(self) -> None:
        """Load what the site's libraries declare.

        Raises:
            _Ended: Databases cannot be loaded without their code.
        """
        self.loading.site_code(is_trial=True)
        self.warnings.extend(self.loading.libraries.warnings)
        if self.loading.libraries.must_run:
            raise _Ended("'libraries' bring types of records or links, and a trial runs no C code")

    def may_be_site_code(self, words: list[str]) -> bool:
        """Whether only the code of 'libraries' may know a command or a variable."""
        variables = [each.name for each in self.loading.libraries.declared if each.kind == "variable"]
        if words[0] == "var":
            return len(words) > 1 and words[1] in variables
        if words[0].endswith(REGISTRAR) or words[0] == "<":
            return False
        return words[0] not in self.known_commands()

    def known_commands(self) -> frozenset[str]:
        """Return the names of the shell's commands."""
        if self.commands is None:
            self.commands = frozenset(dbcore.shell_commands())
        return self.commands

    def run(self) -> NoReturn:
        loading = self.loading
        try:
            if loading.plan.definition:
                self.reading(LoadStep(loading.plan.definition))
            loading.definition()
            self.site_code()
            loading.register_commands()
            self.autosave.register_commands()
            self.register_server_commands()
            self.register_stand_ins()
            loading.files()
            if loading.plan.acf is not None and loading.plan.channel_access:
                rules_for_channel_access(read_access_file(loading.plan.acf), lambda _: True)
            if loading.plan.script:
                self.known_commands()
                loading.script.run(loading.plan.script)
                loading.check_access()
            if loading.plan.loads_records or self.afterwards is not None:
                self.initialise()
            self.left_out = "nothing initialises the IOC"
        except _Ended as why:
            self.left_out = str(why)
        except ConfigurationError as error:
            self.end(error={"why": error.why, "file": error.file, "line": error.line, "key": error.key})
        except ApplianceError as error:
            self.end(error={"why": str(error)})
        self.end()

    def register_server_commands(self) -> None:
        """Add commands that need the server: a script may use them, and there is nothing to see yet."""
        for name in (*SERVER_COMMANDS, *PUT_LOG_COMMANDS):
            dbcore.register_command(name, [], lambda *_: None)
        dbcore.register_command("asInit", [], self.loading.access_used)
        for kind in ("caPutLog", "caPutJsonLog"):
            dbcore.register_command(
                f"{kind}Init", [("servers", str)], lambda servers, kind=kind: self.put_log(kind, servers)
            )

    def put_log(self, kind: str, servers: str | None) -> None:
        """Look whether a command can start the log of puts."""
        has_rules = self.loading.access_step is not None
        check_start(kind, servers, is_running=self.loading.is_past_init, has_rules=has_rules)

    def initialise(self) -> NoReturn:
        """Do what iocInit does before a record is processed, then make the groups."""
        self.tell(reading=["iocInit", ""])
        if self.folder:
            os.chdir(self.folder)

        def hook(state: int) -> None:
            if state == InitHook.AFTER_INIT_DATABASE:
                try:
                    self.groups()
                except ConfigurationError as error:
                    self.end(
                        error={"why": error.why, "file": error.file, "line": error.line, "key": error.key}
                    )
                except ApplianceError as error:
                    self.end(error={"why": str(error)})
                except BaseException as error:  # noqa: BLE001 - an exception must not enter C
                    self.end(error={"why": f"{type(error).__name__}: {error}"})
                self.end()

        dbcore.on_init_hook(hook)
        self.modifiers()
        self.before_init = dbcore.output_so_far()
        dbcore.build_isolated()
        self.end(error={"why": "the IOC cannot be initialised"})

    def groups(self) -> None:
        said = plain(dbcore.output_since(self.before_init))
        registers = any(each.kind == "registrar" for each in self.loading.libraries.declared)
        for line in said.splitlines():
            if registers and _NO_FUNCTION.search(line):
                self.warnings.append(f"{self.located(line)}: a registrar of 'libraries' must bring it")
            elif not line.startswith(("Starting iocInit", "iocRun:", "#")):
                self.faults.append(self.located(line))
                if PROTOCOL in self.faults[-1]:
                    # Nothing of this record can work, and its author believes that a device is there.
                    self.end(error={"why": self.faults[-1]})
        loading = self.loading
        if loading.access_step is not None:
            security = read_access_file(loading.access_step)
            self.warnings.extend(security.warnings)
            if loading.plan.is_check:
                # A start says so itself, when the rules come into force.
                self.warnings.extend(undefined_groups(security))
                self.warnings.extend(inputs_elsewhere(security))
        if loading.plan.is_check:
            self.links()
        groups = Groups(loading.group_files, place=loading.place, report=self.warnings.append)
        if groups.faults:
            raise groups.faults[0]
        names = {group.name for group in groups.groups.values()}
        for record, field, name in loading.links.not_here(names.__contains__):
            self.faults.append(
                self.located(
                    f"{record}.{field}: {name} is no record and no group of this IOC, and the link is local"
                )
            )

    def modifiers(self) -> None:
        """Look for words in links that EPICS ignores; iocInit forgets them."""
        if not self.loading.plan.is_check and dbcore.record_count() > _QUICK:
            return
        told: list[str] = []
        count = 0
        for record, field, kind, text in dbcore.link_texts():
            if not (why := ignored(kind, text)):
                continue
            count += 1
            if count <= _MOST_WORDS:
                told.append(self.located(f"{record}.{field}: {why}"))
        if count > len(told):
            told.append(f"{count - len(told)} other links have words that EPICS ignores, too")
        self.warnings += told

    def links(self) -> None:
        """Look where the links of all records lead."""
        for record, field, text in dbcore.database_links():
            name = text.split()[0]
            if dbcore.exists(name):
                continue
            if dbcore.exists(name.partition(".")[0]):
                self.faults.append(
                    self.located(f"{record}.{field}: links to {name}, but that record has no such field")
                )
            else:
                place = locate.find(self.loading.loaded, record, field)
                warning = ConfigurationError(
                    f"{record}.{field}: {name} is not a record of this IOC; it will be searched for over Channel Access",
                    file=place.file if place else None,
                    line=place.line if place else None,
                )
                self.warnings.append(str(warning))
            if len(self.warnings) + len(self.faults) >= _MOST:
                return

    def located(self, text: str) -> str:
        """Put file and line in front of a message that names a record, or a record's field."""
        message = device_address(re.sub(r"^(?:(?:ERROR|WARNING):?\s*)+", "", text.strip()))
        for match in _FIELD.finditer(message):
            record, field = match[1].lstrip("'\"("), match[2]
            place = locate.find(self.loading.loaded, record, field)
            if place is not None:
                return str(ConfigurationError(message, file=place.file, line=place.line))
        for word in re.findall(r"[^\s'\"(),]+", message):
            name = word.rstrip(":.")
            if dbcore.exists(name) and (place := locate.find(self.loading.loaded, name)) is not None:
                return str(ConfigurationError(message, file=place.file, line=place.line))
        return message

    def end(self, error: dict[str, Any] | None = None) -> NoReturn:
        if error is not None:
            self.tell(end={"error": error})
        else:
            loaded = [list(step) for step in self.loading.loaded]
            self.warnings.extend(self.loading.warnings)
            self.warnings.extend(str(failure) for failure in self.loading.script.failures)
            self.tell(
                end={
                    "warnings": self.warnings[:_MOST],
                    "faults": self.faults[:_MOST],
                    "loaded": loaded,
                    "left_out": self.left_out,
                }
            )
        dbcore.flush_output()
        os._exit(0)


def main() -> None:
    """Run the trial; never returns."""
    answer = os.dup(1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    dbcore.keep_errors_in_place(int(sys.stdin.readline()))
    _Child(answer).run()


if __name__ == "__main__":
    main()
