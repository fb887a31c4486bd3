"""Access security of the IOC: rules from a file, judged for each record's ASG and each field's ASL.

Rules follow the values of their inputs (INPA ... INPU) and the records' field ASG: when one changes, the channels that
it concerns are judged again and their clients are told (ACL_CHANGE). A file that is wrong changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any, Final

from appliance.acf import AccessSecurity, Decision, Principal, Rule, load_acf
from appliance.acf.model import READ
from appliance.config.pva import ServerConfig
from appliance.errors import AccessFileError, ApplianceError
from appliance.ioc import dbcore
from appliance.ioc.acf_inputs import ExternalInputs
from appliance.ioc.config import LoadStep
from appliance.ioc.dbcore import DBE_ALARM, DBE_VALUE, DBChannel
from appliance.ioc.feed import EventSink, EventStream
from appliance.ioc.groups.source import GroupSource
from appliance.ioc.macros import parse_macros
from appliance.ioc.record_pv import RecordPV, RecordSource
from appliance.pva.credentials import Credentials
from appliance.server.access import ALL_RIGHTS, Rights
from appliance.server.channel import Channel

__all__ = ["IocAccess", "read_access_file"]

_log: Final = logging.getLogger(__name__)
_LIMIT: Final = 4 << 20
_INVALID: Final = 3
_MAX_PRINCIPALS: Final = 4096
_NAMED: Final = 5
"""Names in one line of the log."""


def _resolve(host: str) -> list[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]


def read_access_file(step: LoadStep) -> AccessSecurity:
    """Read a file and look its hosts up. Raises AccessFileError. Blocks."""
    try:
        with Path(step.file).open("rb") as file:
            data = file.read(_LIMIT + 1)
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise AccessFileError(f"cannot read the access security file: {why}", file=step.file) from None
    return load_acf(text, file=step.file, macros=parse_macros(step.macros), resolve=_resolve)


class _Input(EventSink):
    """One input PV that is a record of this IOC."""

    __slots__ = ("_event", "access", "channel", "name")

    def __init__(self, access: IocAccess, stream: EventStream, name: str) -> None:
        self.access = access
        self.name = name
        self.channel = DBChannel(name)
        self._event = stream.hub.subscribe(self.channel, DBE_VALUE | DBE_ALARM, self)

    def event(self) -> None:
        self.access.input_changed(self.name, self.value())

    def value(self) -> float | None:
        """What the record has now; None when it is INVALID or no number."""
        reading = self.channel.get()
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
    """The field ASG of one record that has clients."""

    __slots__ = ("_event", "access", "channel", "record", "users")

    def __init__(self, access: IocAccess, stream: EventStream, record: str) -> None:
        self.access = access
        self.record = record
        self.users = 0
        self.channel = DBChannel(record + ".ASG")
        self._event = stream.hub.subscribe(self.channel, DBE_VALUE, self)

    def event(self) -> None:
        self.access.group_changed(self.record)

    def close(self) -> None:
        self._event.cancel()
        self.channel.close()

    def __repr__(self) -> str:
        return f"<field ASG of {self.record}>"


class IocAccess:
    """The AccessPolicy of the IOC's server, and what keeps it current."""

    def __init__(
        self,
        review: Callable[[Callable[[Channel], bool] | None], None],
        config: ServerConfig | None = None,
        *,
        inputs_require_tls: bool = False,
        organizations: Container[str] = (),
        enforce_read: bool = True,
    ) -> None:
        self.security = AccessSecurity.unrestricted()
        self.step: LoadStep | None = None
        """The file in force."""
        self.is_restricted = False
        self.before_use: Callable[[AccessSecurity], None] | None = None
        """Told in a thread of other rules that shall hold; what it raises keeps the former ones in force."""
        self._review = review
        self._reloading = asyncio.Lock()
        self._config = config
        self._inputs_require_tls = inputs_require_tls
        self._organizations = organizations
        self._enforce_read = enforce_read
        self._stream: EventStream | None = None
        self._records: RecordSource | None = None
        self._groups: GroupSource | None = None
        self._inputs: dict[str, _Input] = {}
        self._external: ExternalInputs | None = None
        self._values: dict[str, float | None] = {}
        self._watched: dict[str, _GroupName] = {}
        self._principals: dict[Credentials, Principal] = {}
        self._traps = False

    # -- life ----------------------------------------------------------------------------------------

    def attach(self, stream: EventStream, records: RecordSource, groups: GroupSource) -> None:
        """The database runs: follow the inputs."""
        self._stream = stream
        self._records = records
        self._groups = groups
        records.access = self
        groups.access = self
        self._follow()

    def use(self, security: AccessSecurity, step: LoadStep) -> None:
        """Let other rules hold from now on, for all channels that are open too."""
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
            for pv in list(self._records.pvs.values() if self._records is not None else ()):
                self.watch(pv)
            self._follow()
            self._review(None)

    async def reload(self, step: LoadStep | None = None) -> None:
        """Read the file again, or another one. Raises AccessFileError, and then the former rules stay."""
        # One after the other: what Channel Access goes by and what PVAccess goes by must come from the same reading.
        async with self._reloading:
            step = step or self.step
            if step is not None:
                security = await asyncio.to_thread(read_access_file, step)
                if self.before_use is not None:
                    await asyncio.to_thread(self.before_use, security)
                self.use(security, step)
                await self.report()

    async def report(self) -> None:
        """Tell the log what is judged, and which records nobody can read, or could if reading were judged."""
        if not self.is_restricted or self._stream is None:
            return
        file = self.security.file
        if self._enforce_read:
            _log.info("access security %s: reading and writing are judged", file)
        else:
            _log.info(
                "access security %s: writing is judged, reading is not, as in the reference's IOC; "
                "--enforce-read has it judged (enforce_read: true in a --config file)",
                file,
            )
        hidden = await asyncio.to_thread(_unreadable, self.security)
        if not hidden:
            return
        names = ", ".join(name for name, _ in hidden[:_NAMED])
        more = f" and {len(hidden) - _NAMED} more" if len(hidden) > _NAMED else ""
        groups = ", ".join(f"ASG({group})" for group in sorted({group for _, group in hidden})[:_NAMED])
        _log.log(
            logging.WARNING if self._enforce_read else logging.INFO,
            "%s %s%s: %s to nobody; give it a RULE(1,READ) to let everybody read%s",
            "nobody can read" if self._enforce_read else "if reading were judged nobody could read",
            names,
            more,
            f"{groups} grants reading" if groups else "",
            "" if self._enforce_read else " then",
        )

    async def close(self) -> None:
        """Stop following."""
        for given in self._inputs.values():
            given.close()
        for watched in self._watched.values():
            watched.close()
        self._inputs.clear()
        self._watched.clear()
        if self._external is not None:
            await self._external.close()

    # -- judging -------------------------------------------------------------------------------------

    def _principal(self, peer: Credentials) -> Principal:
        found = self._principals.get(peer)
        if found is None:
            if len(self._principals) >= _MAX_PRINCIPALS:
                self._principals.clear()
            found = self._principals[peer] = Principal.of(peer, self._organizations)
        return found

    def decide(self, channel: DBChannel, peer: Credentials) -> Decision:
        """What a peer may do with a field."""
        access = self.security.compile_for(self._principal(peer)).access(
            channel.access_group, channel.as_level
        )
        if not access.inputs:
            return access.decide()
        return access.decide({letter: self._values.get(pv) for letter, pv in access.inputs.items()})

    def _may_read(self, decision: Decision) -> bool:
        return decision.read or not self._enforce_read

    def value_of(self, name: str) -> float | None:
        """What an input has now; None while it is not connected, invalid or no number."""
        return self._values.get(name)

    def traps(self, channel: DBChannel, peer: Credentials) -> bool:
        """Whether a put must be logged."""
        return self._traps and self.decide(channel, peer).trapwrite

    def rights(self, name: str, peer: Credentials) -> Rights:
        """AccessPolicy: judge a channel that is open."""
        if not self.is_restricted:
            return ALL_RIGHTS
        pv = self._records.pvs.get(name) if self._records is not None else None
        if pv is not None:
            decision = self.decide(pv.channel, peer)
            return Rights(self._may_read(decision), decision.write, decision.rpc, "; ".join(decision.why))
        group = self._groups.groups.get(name) if self._groups is not None else None
        if group is None:
            # The server's own PVs, which list names: no record is behind them.
            return Rights(read=True, write=False, rpc=True)
        members = [
            (member, self.decide(member.channel, peer))
            for member in group.members
            if member.channel is not None
        ]
        # Whoever reads a group reads all of its members. Of those to write, each put is judged member by member.
        return Rights(
            read=all(self._may_read(decision) for _, decision in members),
            write=any(
                decision.write
                for member, decision in members
                if member.config.put_order is not None or member.kind == "proc"
            ),
            why="; ".join(f"{member.name}: {decision.access}" for member, decision in members[:32]),
        )

    # -- changes -------------------------------------------------------------------------------------

    def watch(self, pv: RecordPV) -> None:
        """A record has a client: follow its ASG."""
        if self._stream is None:
            return
        record = pv.channel.record
        found = self._watched.get(record)
        if found is None:
            found = self._watched[record] = _GroupName(self, self._stream, record)
        found.users += 1

    def unwatch(self, pv: RecordPV) -> None:
        """The other end of :meth:`watch`."""
        record = pv.channel.record
        found = self._watched.get(record)
        if found is not None:
            found.users -= 1
            if found.users <= 0:
                del self._watched[record]
                found.close()

    def group_changed(self, record: str) -> None:
        """A record has another ASG."""
        self._review(lambda channel: record in _records_of(channel))

    def input_changed(self, name: str, value: float | None) -> None:
        """An input has another value."""
        if name in self._values and self._values[name] == value:
            return
        self._values[name] = value
        concerned = {group.name for group in self.security.groups.values() if name in group.inputs.values()}
        self._review(lambda channel: not concerned.isdisjoint(self._groups_of(channel)))

    def _groups_of(self, channel: Channel) -> set[str]:
        return {self.security.group(each.access_group).name for each in _channels_of(channel)}

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
                self._external = ExternalInputs(
                    self.input_changed, self._config, require_tls=self._inputs_require_tls
                )
            self._external.follow(outside)


def _unreadable(security: AccessSecurity) -> list[tuple[str, str]]:
    """Name and group of each record whose group has no rule by which anybody could read."""

    def opens(rule: Rule) -> bool:
        members = not rule.uags or any(
            security.uags[name] or security.subjects.get(name) for name in rule.uags
        )
        hosts = not rule.hags or any(security.hags[name] for name in rule.hags)
        return bool(rule.grants & READ) and members and hosts

    known: dict[str, bool] = {}
    found = []
    for record in dbcore.records():
        if record.is_alias:
            continue
        group = security.group(dbcore.record_group(record.address))
        if group.name not in known:
            known[group.name] = any(map(opens, group.rules))
        if not known[group.name]:
            found.append((record.name, group.name))
    return found


def _channels_of(channel: Channel) -> list[DBChannel]:
    handler: Any = channel.handler
    if isinstance(handler, RecordPV):
        return [handler.channel]
    channels = getattr(handler, "channels", None)
    return list(channels()) if channels is not None else []


def _records_of(channel: Channel) -> set[str]:
    return {each.record for each in _channels_of(channel)}
