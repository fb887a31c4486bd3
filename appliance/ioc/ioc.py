"""The IOC as one thing: database, server, access security, shell commands."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import Final

from appliance.acf import AccessSecurity
from appliance.certmon.wiring import open_server
from appliance.config.pva import ServerConfig
from appliance.errors import ApplianceError, ConfigurationError, OperationError
from appliance.ioc import dbcore
from appliance.ioc.access import IocAccess, read_access_file
from appliance.ioc.autosave import Autosave
from appliance.ioc.channel_access import ChannelAccessRules
from appliance.ioc.config import LoadStep, Plan
from appliance.ioc.console import Console
from appliance.ioc.dbcore import InitHook
from appliance.ioc.epicslog import EpicsLog
from appliance.ioc.feed import EventStream
from appliance.ioc.groups.source import GroupSource
from appliance.ioc.loading import Loading
from appliance.ioc.putlog import PutLog
from appliance.ioc.qsrv_env import why_not_served
from appliance.ioc.record_pv import RecordSource
from appliance.ioc.shell import register_commands
from appliance.ioc.trial import Finding, Trial, check_file
from appliance.server.channel import Channel
from appliance.server.server import Server

__all__ = ["Ioc"]

_log: Final = logging.getLogger(__name__)


class Ioc:
    """One per process: EPICS' database is one. All methods belong to the event loop's thread."""

    def __init__(self, plan: Plan, config: ServerConfig) -> None:
        self.plan = plan
        self.config = config
        self.loop = asyncio.get_running_loop()
        self._stack = AsyncExitStack()
        self.access = IocAccess(
            self._review,
            config,
            inputs_require_tls=plan.inputs_require_tls,
            organizations=frozenset(plan.organizations),
            enforce_read=plan.enforce_read,
        )
        self.loading = Loading(plan)
        self.channel_access = ChannelAccessRules()
        self.access.before_use = self.channel_access.replace
        self._stack.callback(self.channel_access.close)
        self.autosave = Autosave()
        self.put_log: PutLog | None = None
        self.stream: EventStream | None = None
        self.records: RecordSource | None = None
        self.groups: GroupSource | None = None
        self.console: Console | None = None
        self.attached = False
        """The database runs, and its records are served, unless ``switched_off``."""
        self.switched_off = ""
        """The variable that forbids to serve records over PVAccess."""
        self._failure: ApplianceError | None = None
        self._server: Server | None = None

    @property
    def server(self) -> Server:
        """The PVAccess server, once started."""
        assert self._server is not None
        return self._server

    def _review(self, concerns: object) -> None:
        if self._server is not None:
            self._server.review_access(concerns)  # type: ignore[arg-type]

    # -- start ---------------------------------------------------------------------------------------

    def load(self) -> None:
        """Load definition and databases, after a trial. Raises ConfigurationError. Blocks: call it in a thread."""
        trial = Trial(self.plan) if self.plan.loads_anything else None
        try:
            self.loading.definition()
            finding = trial.finding() if trial is not None else Finding()
        except BaseException:
            if trial is not None:
                trial.close()
            raise
        for warning in finding.warnings:
            _log.warning("%s", warning)

        def guard(step: LoadStep) -> None:
            if step not in finding.loaded:
                check_file(self.plan, step)

        self.loading.guard = guard
        dbcore.on_init_hook(self._on_init)
        self.loading.register_commands()
        register_commands(self)
        self.autosave.register_commands()
        self.loading.files()

    async def start(self) -> None:
        """Listen, run the script, initialise; records are served when this returns.

        Raises ConfigurationError, AccessFileError, KeychainError or TransportError.
        """
        plan = self.plan
        await asyncio.to_thread(self.load)
        self.put_log = PutLog(self.access, plan.put_log, required=plan.put_log_required)
        self._stack.callback(self.put_log.close)
        self._server = await self._stack.enter_async_context(open_server(self.config, policy=self.access))
        self._server.on_refused = self.put_log.refused
        if plan.script:
            await asyncio.to_thread(self.loading.script.run, plan.script)
        self._raise_failure()
        if plan.loads_records and dbcore.ioc_state() is dbcore.IocState.VOID:
            await asyncio.to_thread(dbcore.ioc_init)
        self._raise_failure()
        if not self.attached and not plan.is_interactive:
            raise ConfigurationError(
                "the script ended without iocInit, and nobody is there to type it", file=plan.script
            )
        if plan.console:
            self.console = Console(plan.console, plan.console_group)
            await self.console.start()
            self._stack.push_async_callback(self.console.stop)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _on_init(self, state: int) -> None:
        """EPICS' hook: called in whatever thread runs iocInit."""
        self.autosave.on_init(state)
        if state == InitHook.AT_IOC_BUILD and dbcore.serves_channel_access():
            self._prepare_channel_access()
        if state == InitHook.AFTER_IOC_RUNNING and not self.attached:
            asyncio.run_coroutine_threadsafe(self._attach(), self.loop).result()

    def _prepare_channel_access(self) -> None:
        """Its server judges by EPICS Base's own rules: without any it would let everybody do everything."""
        security = AccessSecurity.unrestricted()
        try:
            if self.loading.access_step is not None:
                security = read_access_file(self.loading.access_step)
            self.channel_access.prepare(security)
        except ApplianceError as error:
            self._failure = error
            _log.critical("nobody may use Channel Access: %s", error)
            self.channel_access.prepare(AccessSecurity({}))
        dbcore.on_trapped_put(self._on_trapped_put)

    def _on_trapped_put(self, put: dbcore.TrappedPut) -> None:
        if self.put_log is None:
            raise OperationError("there is no put log yet")
        self.put_log.trapped(put)

    async def _attach(self) -> None:
        """Serve the records; where that fails nothing is served, and ``start`` raises why."""
        if self.attached or self._server is None:
            return
        dbcore.take_errors(EpicsLog())
        try:
            if self.loading.access_step is not None:
                security = await asyncio.to_thread(read_access_file, self.loading.access_step)
                self.access.use(security, self.loading.access_step)
            self.switched_off = why_not_served(report=True)
            if self.switched_off:
                _log.warning("%s: no record is served over PVAccess", self.switched_off)
                self.attached = True
                return
            self.stream = EventStream(self.loop)
            self.records = RecordSource(self.stream)
            self.groups = GroupSource(self.stream, self.loading.group_files, place=self.loading.place)
            self.access.attach(self.stream, self.records, self.groups)
            await self.access.report()
        except ApplianceError as error:
            self._failure = error
            _log.critical("no record is served: %s", error)
            return
        self.records.put_log = self.groups.put_log = self.put_log
        self._server.add_source("qsrvSingle", self.records, priority=0)
        self._server.add_source("qsrvGroup", self.groups, priority=1)
        self.attached = True

    # -- reports -------------------------------------------------------------------------------------

    def access_lines(self) -> list[str]:
        """The rules in force, for people."""
        access = self.access
        if not access.is_restricted:
            return ["access security is off: everybody may do everything"]
        lines = [f"file: {access.security.file}"]
        for group in access.security.groups.values():
            lines.append(f"ASG({group.name})")
            lines += [
                f"  INP{letter}({pv}) = {access.value_of(pv)}" for letter, pv in sorted(group.inputs.items())
            ]
            for rule in group.rules:
                lines.append(f"  {rule}")
                for word, names in (
                    ("UAG", rule.uags),
                    ("HAG", rule.hags),
                    ("SAG", rule.sags),
                    ("METHOD", rule.methods),
                    ("AUTHORITY", tuple(each.name for each in rule.authorities)),
                    ("PROTOCOL", rule.protocols),
                    ("CALC", (rule.calc.text,) if rule.calc is not None else ()),
                ):
                    if names:
                        lines.append(f"    {word}({', '.join(names)})")
        return lines

    def report_lines(self, level: int) -> list[str]:
        """The state of the server, for people."""
        server = self.server
        lines = [f"records are not served: {self.switched_off}"] if self.switched_off else []
        lines += [
            f"TCP port {server.tcp_port or 'off'}, TLS port {server.tls_port or 'off'}, UDP port {server.udp_port}",
            f"{len(server.peers)} clients, {server.refusals} requests refused",
        ]
        if level > 0:
            for peer in server.peers.values():
                who = peer.credentials
                channels = [
                    wire.context for wire in peer.connection.channels.values() if wire.context is not None
                ]
                protocol = "tls" if who.is_tls else "tcp"
                lines.append(
                    f"  {who.method}/{who.account or '-'} {protocol} {who.peer} {len(channels)} channels"
                )
                if level > 1:
                    lines += [f"    {channel.name}{_rights(channel)}" for channel in channels]
        return lines

    # -- end -----------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Close clients, events and database, in this order."""
        await self._stack.aclose()
        await asyncio.to_thread(self.autosave.close)
        await self.access.close()
        if self.records is not None:
            self.records.close()
        if self.groups is not None:
            self.groups.close()
        if self.stream is not None:
            self.stream.close()
        await asyncio.to_thread(dbcore.shutdown)


def _rights(channel: Channel) -> str:
    rights = channel.rights
    words = [word for word, have in (("read", rights.read), ("write", rights.write)) if have]
    return f" ({', '.join(words) or 'no access'})"
