"""Access security of the IOC: rules from a file, judged for each record's ASG and each field's ASL.

Rules follow the values of their inputs (INPA ... INPU) and the records' field ASG: when one changes, the fields that
depend on it are judged again. A file that is wrong changes nothing.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
from collections.abc import Callable, Container, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final

from appliance.acf import AccessSecurity, Decision, Principal
from appliance.acf.model import DEFAULT
from appliance.client.context import Context
from appliance.client.inputs import ExternalInputs
from appliance.config.pva import ClientConfig, ServerConfig
from appliance.errors import AccessFileError, ApplianceError
from appliance.ioc import dbcore
from appliance.ioc.config import LoadStep
from appliance.ioc.dbcore import DBE_ALARM, DBE_VALUE, DBChannel
from appliance.ioc.event_stream import EventSink, EventStream
from appliance.ioc.macros import parse_macros
from appliance.ioc.own_client import open_own_client, own_client_config, with_tls_of
from appliance.pva.credentials import Credentials
from appliance.server.access import Rights
from appliance.server.access_file import load_access_file

__all__ = ["FieldAccess", "inputs_elsewhere", "read_access_file", "undefined_groups"]

_log: Final = logging.getLogger(__name__)
_INVALID: Final = 3
_INPUTS: Final = "inputs of access security"
_MAX_PRINCIPALS: Final = 4096
_NAMED: Final = 5
"""The most names in one line of the log."""
_COMPARED: Final = 5000
"""Of how many records the names are compared with one that is not there."""


def read_access_file(step: LoadStep) -> AccessSecurity:
    """Read a file and look its hosts up; blocks.

    Raises:
        AccessFileError: The file cannot be read, or it is wrong.
    """
    return load_access_file(step.file, macros=parse_macros(step.macros))


class _Input(EventSink):
    """One input PV that is a record of this IOC."""

    __slots__ = ("_event", "access", "channel", "name")

    def __init__(self, access: FieldAccess, stream: EventStream, name: str) -> None:
        self.access = access
        self.name = name
        self.channel = DBChannel(name)
        self._event = stream.hub.subscribe(self.channel, DBE_VALUE | DBE_ALARM, self)

    def event(self) -> None:
        self.access.input_changed(self.name, self.value())

    def broken(self, error: Exception) -> None:
        """Take the input for invalid."""
        super().broken(error)
        self.access.input_changed(self.name, None)

    def value(self) -> float | None:
        """Return the record's value now; None if it is INVALID, not a number, or cannot be read."""
        try:
            reading = self.channel.get()
        except ApplianceError as error:
            _log.warning("access security takes the input %s for invalid: %s", self.name, error)
            return None
        if reading.severity >= _INVALID:
            return None
        try:
            return float(reading.value)
        except (TypeError, ValueError):
            return None

    def close(self) -> None:
        self._event.cancel()
        self.channel.close()

    def __repr__(self) -> str:
        return f"<access security input {self.name}>"


class _GroupName(EventSink):
    """The field ASG of a record that has clients."""

    __slots__ = ("_event", "access", "channel", "record")

    def __init__(self, access: FieldAccess, stream: EventStream, record: str) -> None:
        self.access = access
        self.record = record
        self.channel = DBChannel(record + ".ASG")
        self._event = stream.hub.subscribe(self.channel, DBE_VALUE, self)

    def event(self) -> None:
        self.access.group_changed(self.record)

    def close(self) -> None:
        self._event.cancel()
        self.channel.close()

    def __repr__(self) -> str:
        return f"<field ASG of {self.record}>"


class FieldAccess:
    """Decides what a peer may do with a field, and follows the inputs of the rules.

    Args:
        review: called with the fields to judge again; None means all fields.
        before_use: called in a thread with new rules before they are used; if it raises, the former rules stay in force.
        config: settings of the server; its keychain is also used for inputs on other servers.
        inputs_require_tls: take inputs of other servers over TLS only.
        organizations: a name without an organization in a UAG means people of these organizations.
        enforce_read: apply the rules to reading too.

    """

    def __init__(
        self,
        review: Callable[[Callable[[DBChannel], bool] | None], None],
        before_use: Callable[[AccessSecurity], None],
        config: ServerConfig | None = None,
        *,
        inputs_require_tls: bool = False,
        organizations: Container[str] = (),
        enforce_read: bool = True,
    ) -> None:
        self.security = AccessSecurity.unrestricted()
        self.step: LoadStep | None = None
        """The file whose rules are in force."""
        self.is_restricted = False
        """Whether there are rules; without rules everybody may do everything."""
        self._review = review
        self._before_use = before_use
        self._reloading = asyncio.Lock()
        self._config = config
        self._inputs_require_tls = inputs_require_tls
        self._organizations = organizations
        self._enforce_read = enforce_read
        self._stream: EventStream | None = None
        self._inputs: dict[str, _Input] = {}
        self._external: ExternalInputs | None = None
        self._client_config: ClientConfig | None = None
        """The settings of its client, once they are known."""
        self._values: dict[str, float | None] = {}
        self._users: dict[str, int] = {}
        """Number of open PVs of each record, by record name."""
        self._watched: dict[str, _GroupName] = {}
        self._principals: dict[Credentials, Principal] = {}
        self._traps = False

    @property
    def selects_puts(self) -> bool:
        """Whether any rule says that puts are logged (TRAPWRITE)."""
        return self._traps

    # -- life ----------------------------------------------------------------------------------------

    def attach(self, stream: EventStream) -> None:
        """Follow the inputs; call this when the database runs."""
        self._stream = stream
        self._follow()

    def use(self, security: AccessSecurity, step: LoadStep) -> None:
        """Use other rules from now on, for open channels too."""
        self.security = security
        self.step = step
        self.is_restricted = True
        self._traps = any(rule.trapwrite for group in security.groups.values() for rule in group.rules)
        self._principals.clear()
        for warning in security.warnings:
            _log.warning("%s", warning)
        if self._stream is not None:
            for watched in self._watched.values():
                watched.close()
            self._watched.clear()
            for record in self._users:
                self._follow_group(self._stream, record)
            self._follow()
            self._review(None)

    async def reload(self, step: LoadStep | None = None) -> None:
        """Read the file again, or another one.

        Raises:
            AccessFileError: The file cannot be read, or it is wrong; the former rules stay in force.
        """
        # One reload at a time: Channel Access and PVAccess must use rules from the same reading of the file.
        async with self._reloading:
            step = step or self.step
            if step is not None:
                security = await asyncio.to_thread(read_access_file, step)
                await asyncio.to_thread(self._before_use, security)
                self.use(security, step)
                await self.report()

    async def report(self) -> None:
        """Log what the rules apply to, and which records nobody can read under them."""
        if not self.is_restricted or self._stream is None:
            return
        file = self.security.file
        if self._enforce_read:
            _log.info("access security file %s: its rules apply to reading and writing", file)
        else:
            _log.info(
                "access security file %s: its rules apply to writing only, as in the reference's IOC; "
                "to apply them to reading too, use --enforce-read (enforce_read: true in a --config file)",
                file,
            )
        for warning in await asyncio.to_thread(undefined_groups, self.security):
            _log.warning("%s", warning)
        hidden = await asyncio.to_thread(_unreadable, self.security)
        if not hidden:
            return
        names = _some([name for name, _ in hidden])
        groups = ", ".join(f"ASG({group})" for group in sorted({group for _, group in hidden})[:_NAMED])
        _log.log(
            logging.WARNING if self._enforce_read else logging.INFO,
            "%s %s: %s to nobody; add RULE(1,READ) to it to let everybody read%s",
            "nobody can read" if self._enforce_read else "with --enforce-read, nobody could read",
            names,
            f"{groups} grants reading" if groups else "",
            "" if self._enforce_read else " in that case",
        )

    async def close(self) -> None:
        """Stop following the inputs."""
        for given in self._inputs.values():
            given.close()
        for watched in self._watched.values():
            watched.close()
        self._inputs.clear()
        self._watched.clear()
        self._users.clear()
        if self._external is not None:
            await self._external.close()

    async def reconfigure(self, config: ServerConfig | None, environ: Mapping[str, str]) -> None:
        """Follow inputs on other servers with another keychain and TLS options, if these differ.

        Args:
            config: The settings of the server.
            environ: The environment.
        """
        former = self._client_config or own_client_config(self._config, _INPUTS)
        self._config = config
        self._client_config = with_tls_of(former, own_client_config(config, _INPUTS, environ))
        if self._external is not None and self._client_config != former:
            await self._external.reopen()

    def _open_client(self) -> AbstractAsyncContextManager[Context]:
        """Open the client for inputs on other servers."""
        if self._client_config is None:
            self._client_config = own_client_config(self._config, _INPUTS)
        return open_own_client(
            self._client_config,
            _INPUTS,
            "rules that use them do not hold",
            require_tls=self._inputs_require_tls,
        )

    # -- judging -------------------------------------------------------------------------------------

    def _principal(self, peer: Credentials) -> Principal:
        found = self._principals.get(peer)
        if found is None:
            if len(self._principals) >= _MAX_PRINCIPALS:
                self._principals.clear()
            found = self._principals[peer] = Principal.of(peer, self._organizations)
        return found

    def decide(self, channel: DBChannel, peer: Credentials) -> Decision:
        """Return what a peer may do with a field."""
        access = self.security.compile_for(self._principal(peer)).access(
            channel.access_group, channel.as_level
        )
        if not access.inputs:
            return access.decide()
        return access.decide({letter: self._values.get(pv) for letter, pv in access.inputs.items()})

    def may_read(self, decision: Decision) -> bool:
        """Whether a decision allows reading, or the rules do not apply to reading."""
        return decision.read or not self._enforce_read

    def value_of(self, name: str) -> float | None:
        """Return the value of an input now; None if it is not connected, INVALID or not a number."""
        return self._values.get(name)

    def traps(self, channel: DBChannel, peer: Credentials) -> bool:
        """Whether a put must be logged."""
        return self._traps and self.decide(channel, peer).trapwrite

    def rights(self, channel: DBChannel, peer: Credentials) -> Rights:
        """Return a peer's rights to a field, for the server."""
        decision = self.decide(channel, peer)
        return Rights(self.may_read(decision), decision.write, decision.rpc, "; ".join(decision.why))

    # -- changes -------------------------------------------------------------------------------------

    def watch(self, record: str) -> None:
        """Count one more user of a record, and follow its ASG."""
        self._users[record] = self._users.get(record, 0) + 1
        if self.is_restricted and self._stream is not None and record not in self._watched:
            self._follow_group(self._stream, record)

    def unwatch(self, record: str) -> None:
        """Undo one :meth:`watch`."""
        users = self._users.get(record, 0) - 1
        if users > 0:
            self._users[record] = users
            return
        self._users.pop(record, None)
        if (found := self._watched.pop(record, None)) is not None:
            found.close()

    def _follow_group(self, stream: EventStream, record: str) -> None:
        self._watched[record] = _GroupName(self, stream, record)

    def group_changed(self, record: str) -> None:
        """Judge the fields of a record again: its ASG has changed."""
        self._review(lambda channel: channel.record == record)

    def input_changed(self, name: str, value: float | None) -> None:
        """Store a new value of an input, and judge again the fields that depend on it."""
        if name in self._values and self._values[name] == value:
            return
        self._values[name] = value
        concerned = {group.name for group in self.security.groups.values() if name in group.inputs.values()}
        self._review(lambda channel: self.security.group(channel.access_group).name in concerned)

    def _follow(self) -> None:
        """Follow the inputs of the rules in force: records here, other PVs as a client."""
        stream = self._stream
        assert stream is not None
        wanted = {pv for group in self.security.groups.values() for pv in group.inputs.values()}
        for name in [name for name in self._inputs if name not in wanted]:
            self._inputs.pop(name).close()
            self._values.pop(name, None)
        outside = []
        for name in sorted(wanted):
            if name in self._inputs:
                continue
            try:
                here = self._inputs[name] = _Input(self, stream, name)
                self._values[name] = here.value()
            except ApplianceError as error:
                if dbcore.exists(name):
                    _log.error("input %s of access security: %s", name, error)
                outside.append(name)
        if outside or self._external is not None:
            if self._external is None:
                self._external = ExternalInputs(self.input_changed, self._open_client)
            self._external.follow(outside)


def _some(names: list[str]) -> str:
    """Name the first of many, and count the others."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def undefined_groups(security: AccessSecurity) -> list[str]:
    """Say which records are in groups that the file does not define, one sentence for each group; blocks.

    Such a record has the rules of ASG(DEFAULT). A misspelt name would be noticed by nobody.
    """
    found: dict[str, list[str]] = {}
    for record in dbcore.records():
        if record.is_alias:
            continue
        group = dbcore.record_group(record.address)
        if group and group not in security.groups and group != DEFAULT:
            found.setdefault(group, []).append(record.name)
    said = []
    for group, names in sorted(found.items())[:_NAMED]:
        near = difflib.get_close_matches(group, security.groups, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        said.append(
            f"{_some(names)}: {security.file} does not define ASG({group}), so the rules of ASG({DEFAULT}) hold{hint}"
        )
    return said


def inputs_elsewhere(security: AccessSecurity) -> list[str]:
    """Say which inputs of the rules are no records of this IOC, one sentence for each name; blocks.

    An input that nobody serves is never connected, and a rule that reads it never holds.
    """
    found: dict[str, AccessFileError] = {}
    for group in security.groups.values():
        for letter, name in group.inputs.items():
            if name not in found and (why := _why_no_input(name)):
                what = f"ASG({group.name}): INP{letter} names {why}"
                found[name] = AccessFileError(what, file=security.file, line=group.lines.get(letter))
    return [str(each) for each in list(found.values())[:_NAMED]]


def _why_no_input(name: str) -> str:
    never = "the rules that read it never allow anything"
    if any(letter.isspace() or not letter.isprintable() for letter in name.partition("{")[0]):
        return f"{name!r}, and no PV's name has blanks or control characters: {never}"
    if dbcore.exists(name):
        return ""
    record = name.partition(".")[0]
    if dbcore.exists(record):
        return f"{name}, but the record {record} has no such field: {never}"
    near = difflib.get_close_matches(name, dbcore.record_names()[:_COMPARED], 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"{name}, which is no record of this IOC{hint}; if no other IOC serves it, {never}"


def _unreadable(security: AccessSecurity) -> list[tuple[str, str]]:
    """Return name and group of each record whose group has no rule that allows reading."""
    known: dict[str, bool] = {}
    found = []
    for record in dbcore.records():
        if record.is_alias:
            continue
        group = security.group(dbcore.record_group(record.address))
        if group.name not in known:
            known[group.name] = security.is_readable(group.name)
        if not known[group.name]:
            found.append((record.name, group.name))
    return found
