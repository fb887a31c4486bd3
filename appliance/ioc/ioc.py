"""The whole IOC: creates and connects database, server, access security and shell commands."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Final

from appliance.acf import AccessSecurity
from appliance.certmon.endpoints import open_server, reconfigure_server
from appliance.client.context import Context
from appliance.config.pva import ClientConfig, ServerConfig, resolve_client, resolve_server
from appliance.errors import ApplianceError, ConfigurationError, OperationError
from appliance.ioc import dbcore, reports
from appliance.ioc.access import FieldAccess, read_access_file
from appliance.ioc.autosave.commands import Autosave
from appliance.ioc.channel_access import ChannelAccessRules
from appliance.ioc.config import LoadStep, Plan
from appliance.ioc.console import Console
from appliance.ioc.dbcore import DBChannel, InitHook
from appliance.ioc.early import EarlySearches
from appliance.ioc.epicslog import EpicsLog
from appliance.ioc.event_stream import EventStream
from appliance.ioc.groups.definitions import Groups
from appliance.ioc.groups.source import GroupSource
from appliance.ioc.loading import Loading
from appliance.ioc.own_client import TLS_SETTINGS, open_own_client, own_client_config, with_tls_of
from appliance.ioc.policy import IocPolicy
from appliance.ioc.putlog import PutLog
from appliance.ioc.putlog_commands import register_put_log, start_put_log
from appliance.ioc.qsrv_env import LateSettings, shell_environment, why_not_served
from appliance.ioc.record_source import RecordSource
from appliance.ioc.shell import register_commands
from appliance.ioc.stats import ServerCounts, Stats
from appliance.ioc.trial import Trial, TrialResult, check_file
from appliance.server.server import Server
from appliance.server.source import Source

__all__ = ["Ioc"]

_log: Final = logging.getLogger(__name__)
_LINKS: Final = "PVA links"
_EARLY: Final = "earlySearches"
_INIT_S: Final = 5.0
"""Seconds that the end waits for an iocInit that somebody has typed. One that fails does not say that it is over."""


def _from_environment() -> ServerConfig:
    found = resolve_server(environ=shell_environment())
    for warning in found.warnings:
        _log.warning("%s", warning)
    return found.config


class Ioc:
    """The IOC; one per process, as EPICS' database. Call all methods on the event loop's thread."""

    def __init__(
        self, plan: Plan, config: ServerConfig, resolve: Callable[[], ServerConfig] | None = None
    ) -> None:
        """Make the parts.

        Args:
            plan: What to load.
            config: The settings of the server.
            resolve: Reads the settings again; by default from the environment.
        """
        self.plan = plan
        self.config = config
        self._resolve = _from_environment if resolve is None else resolve
        self.loop = asyncio.get_running_loop()
        self._stack = AsyncExitStack()
        self.channel_access = ChannelAccessRules()
        self._stack.callback(self.channel_access.close)
        self.access = FieldAccess(
            self._review,
            self.channel_access.replace,
            config,
            inputs_require_tls=plan.inputs_require_tls,
            organizations=frozenset(plan.organizations),
            enforce_read=plan.enforce_read,
        )
        self.policy = IocPolicy(self.access)
        self.loading = Loading(plan)
        self.autosave = Autosave()
        self.put_log: PutLog | None = None
        self.stream: EventStream | None = None
        self.records: RecordSource | None = None
        self.groups: GroupSource | None = None
        self.console: Console | None = None
        self.stats = Stats(self, plan.script)
        self.attached = False
        """Whether the database runs and its records are served, unless ``switched_off``."""
        self.switched_off = ""
        """The variable that forbids to serve records over PVAccess; empty if none does."""
        self._rereading: asyncio.Task[None] | None = None
        self._links_config: ClientConfig | None = None
        """The settings of the links' client, once they are known."""
        self._failure: ApplianceError | None = None
        self._late_settings = LateSettings()
        self._server: Server | None = None
        self._early = EarlySearches()
        self._is_stopping = False
        self._trial: Trial | None = None
        self._starting: asyncio.Future[None] | None = None
        """A part of the start that runs in a thread."""
        self._no_init = threading.Event()
        """Set while no iocInit is under way, whoever has called it."""
        self._no_init.set()

    @property
    def server(self) -> Server:
        """The PVAccess server; it exists after the start."""
        assert self._server is not None
        return self._server

    def _review(self, is_concerned: Callable[[DBChannel], bool] | None) -> None:
        """Make the server judge the rights to some fields again, or to all."""
        if self._server is None:
            return
        if is_concerned is None:
            self._server.review_access()
        else:
            self._server.review_access(lambda channel: self.policy.concerns(channel.name, is_concerned))

    # -- start ---------------------------------------------------------------------------------------

    def load(self) -> None:
        """Load definition and databases, after a trial; blocks, so call it in a thread.

        Raises:
            ConfigurationError: A file cannot be read, or it is wrong.
        """
        trial = self._trial = Trial(self.plan) if self.plan.loads_anything else None
        try:
            self.loading.definition()
            result = trial.result() if trial is not None else TrialResult()
        except BaseException:
            if trial is not None:
                trial.close()
            raise
        for warning in result.warnings:
            _log.warning("%s", warning)
        for fault in result.faults:
            # EPICS says it too, without the file, and goes on.
            _log.error("%s", fault)

        self.loading.site_code(is_trial=False)
        for name, value in (("ENGINEER", self.plan.engineer), ("LOCATION", self.plan.location)):
            if value:
                os.environ[name] = value

        def guard(step: LoadStep) -> None:
            found = list(self.loading.warnings)
            self.loading.warnings.clear()
            if step not in result.loaded:
                check_file(self.plan, step)
                for warning in found:
                    _log.warning("%s", warning)

        self.loading.guard = guard
        dbcore.on_init_hook(self._on_init)
        self.loading.register_commands()
        register_commands(self)
        self.autosave.register_commands()
        self.loading.files()

    async def start(self) -> None:
        """Listen, run the script, initialise; records are served when this returns.

        Raises:
            ConfigurationError: The start script or iocInit failed.
            AccessFileError: The access security file is wrong.
            KeychainError: The keychain cannot be used.
            TransportError: The server cannot listen.
        """
        plan = self.plan
        await self._beside(self.load)
        self.put_log = PutLog(self.access.traps, plan.put_log, required=plan.put_log_required)
        # It may wait for log servers, and clients are served meanwhile.
        self._stack.push_async_callback(asyncio.to_thread, self.put_log.close)
        register_put_log(
            self.put_log.ca_put_log,
            lambda: self.loading.access_step is not None,
            lambda: self.access.selects_puts,
        )
        if plan.ca_put_log is not None:
            start_put_log(self.put_log.ca_put_log, plan.ca_put_log)
        self._server = await self._stack.enter_async_context(
            open_server(self.config, policy=self.policy, prepare=self._prepare_server)
        )
        self._server.access.on_refused = self.put_log.refused
        if plan.script:
            await self._beside(self.loading.script.run, plan.script)
            self._raise_failure()
            self.loading.check_access()
        if plan.loads_records and dbcore.ioc_state() is dbcore.IocState.VOID:
            await self._beside(dbcore.ioc_init)
        self._raise_failure()
        if not self.attached and not plan.is_interactive:
            raise ConfigurationError(
                "the script ended without iocInit, and nobody is there to type it", file=plan.script
            )
        if plan.console:
            self.console = Console(plan.console, plan.console_group)
            await self.console.start()
            self._stack.push_async_callback(self.console.stop)

    async def _beside(self, part: Callable[..., None], *arguments: str) -> None:
        """Run a part of the start in a thread. If the start is cancelled, :meth:`stop` waits for the thread's end."""
        self._starting = asyncio.ensure_future(asyncio.to_thread(part, *arguments))
        self._starting.add_done_callback(self._has_run)
        await asyncio.shield(self._starting)

    def _has_run(self, thread: asyncio.Future[None]) -> None:
        self._no_init.set()  # also after an iocInit that failed
        if not thread.cancelled():
            thread.exception()  # nobody else asks for it if the start was cancelled

    async def _end_start(self) -> None:
        """Wait until nothing initialises EPICS any more: its exit handlers would wait for iocInit, and it for them."""
        if self._trial is not None:
            self._trial.give_up()
        if self._starting is not None:
            await asyncio.wait([self._starting])
        if not self._no_init.is_set():  # somebody has typed iocInit
            await asyncio.to_thread(self._no_init.wait, _INIT_S)

    def _prepare_server(self, server: Server) -> None:
        """Have nobody search before there are records, and remember who does."""
        server.keep_quiet()
        server.add_source(_EARLY, self._early)

    async def _announce(self, *sources: Source) -> None:
        """Let clients know that there is something to be found, those first who have searched before."""
        self.server.remove_source(_EARLY)
        await self._early.answer(sources)
        self.server.announce()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _on_init(self, state: int) -> None:
        """Handle a state of iocInit; EPICS calls this in the thread that runs iocInit."""
        if state == InitHook.AT_IOC_BUILD:
            self._no_init.clear()
        try:
            self.autosave.on_init(state)
            if state == InitHook.AT_IOC_BUILD and dbcore.serves_channel_access():
                self._prepare_channel_access()
            if state == InitHook.AFTER_IOC_RUNNING and not self.attached and not self._is_stopping:
                asyncio.run_coroutine_threadsafe(self._attach(), self.loop).result()
        finally:
            if state == InitHook.AFTER_IOC_RUNNING:
                self._no_init.set()

    def _prepare_channel_access(self) -> None:
        """Its server uses EPICS Base's own rules; without rules everybody could do everything."""
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
        """Serve the records. If this fails, nothing is served and ``start`` raises the reason."""
        if self.attached or self._is_stopping or self._server is None or self.put_log is None:
            return
        self._late_settings.report()
        dbcore.take_errors(EpicsLog())
        try:
            if self.loading.access_step is not None:
                security = await asyncio.to_thread(read_access_file, self.loading.access_step)
                self.access.use(security, self.loading.access_step)
            self.stats.start()
            self.loading.reread.ask = self._ask_reread
            self.switched_off = why_not_served(report=True)
            self.stream = EventStream(self.loop)
            self.records = RecordSource(self.stream, self.access, self.put_log)
            # Walking through a large database takes long: later everybody would have to wait for it.
            await asyncio.to_thread(self.records.names)
            if self.switched_off:
                _log.warning("%s: no record is served over PVAccess", self.switched_off)
                self._start_links()
                self.attached = True
                await self._announce()
                return
            groups = Groups(self.loading.group_files, place=self.loading.place)
            self.groups = GroupSource(groups.groups.values(), self.stream, self.access, self.put_log)
            self.policy.attach(self.records, self.groups)
            self.access.attach(self.stream)
            await self.access.report()
            self._report_unlogged()
        except ApplianceError as error:
            self._failure = error
            _log.critical("no record is served: %s", error)
            return
        self._server.add_source("qsrvSingle", self.records, priority=0)
        self._server.add_source("qsrvGroup", self.groups, priority=1)
        self._start_links()
        self.attached = True
        await self._announce(self.records, self.groups)

    def _report_unlogged(self) -> None:
        """Say that a log of puts stays empty."""
        plan = self.plan
        logs = [
            name for name, is_set in (("put_log", plan.put_log), ("ca_put_log", plan.ca_put_log)) if is_set
        ]
        if logs and not self.access.selects_puts:
            why = (
                "no rule of the access security file has TRAPWRITE"
                if self.loading.access_step is not None
                else "there is no access security file, whose rules select them (TRAPWRITE)"
            )
            _log.warning("%s: no put is logged: %s", " and ".join(logs), why)

    def _start_links(self) -> None:
        assert self.records is not None

        def opener() -> AbstractAsyncContextManager[Context]:
            if self._links_config is None:
                self._links_config = own_client_config(self.config, _LINKS)
            return self._open_links(self._links_config)

        self.loading.links.start(self.records, self.groups, opener)

    def _open_links(self, config: ClientConfig) -> AbstractAsyncContextManager[Context]:
        required = self.config.tls_options.tls_required
        return open_own_client(config, _LINKS, "they connect to nothing outside", require_tls=required)

    def _other_links_config(self, server: ServerConfig) -> ClientConfig:
        """Return the settings of the links' client if the server has these."""
        if self._links_config is None:
            self._links_config = own_client_config(self.config, _LINKS)
        new = own_client_config(server, _LINKS, shell_environment())
        return with_tls_of(self._links_config, new)

    # -- reports -------------------------------------------------------------------------------------

    async def reload_access(self) -> None:
        """Read the access security file again, or the file that asSetFilename has named since then.

        Raises:
            ApplianceError: No file is set, or the file is wrong; the former rules stay in force.
        """
        step = self.loading.access_step
        if step is None:
            raise ApplianceError('no access security file is set: use asSetFilename("file") first')
        await self.access.reload(step)
        self.loading.access_used()

    async def _reread_access(self) -> None:
        """Read the access security file again because a record asks for it."""
        reread = self.loading.reread
        reread.begin()
        failed = False
        try:
            await self.reload_access()
        except ApplianceError as error:
            failed = True
            _log.error("the access security file was not read again: %s", error)
        await asyncio.to_thread(reread.done, failed=failed)

    def _ask_reread(self) -> None:
        def start() -> None:
            self._rereading = self.loop.create_task(self._reread_access())

        self.loop.call_soon_threadsafe(start)

    def server_counts(self) -> ServerCounts:
        """Return how many clients and channels the server has."""
        peers = list(self.server.peers.values())
        return ServerCounts(
            len(peers),
            sum(peer.credentials.is_tls for peer in peers),
            sum(1 for peer in peers for _ in peer.channels()),
        )

    def access_lines(self) -> list[str]:
        """Return a report of the rules in force."""
        return reports.access_lines(self.access)

    def server_lines(self, level: int) -> list[str]:
        """Return a report of the server's state."""
        return reports.server_lines(self.server, level, self.switched_off)

    def name_lines(self, details: int) -> list[str]:
        """Return a list of the names that are served."""
        found = (("qsrvSingle", 0, self.records), ("qsrvGroup", 1, self.groups))
        return reports.name_lines(
            [(label, priority, source) for label, priority, source in found if source is not None], details
        )

    def information_lines(self) -> list[str]:
        """Return versions, host and settings."""
        environ = shell_environment()
        return reports.information_lines(resolve_client(environ=environ), resolve_server(environ=environ))

    async def reconfigure(self) -> list[str]:
        """Read the settings again, and use keychain and TLS options from now on.

        Raises:
            ApplianceError: The settings cannot be used; the former ones stay in use.
        """
        config = await asyncio.to_thread(self._resolve)
        used = self.config._replace(**{name: getattr(config, name) for name in TLS_SETTINGS})
        waiting = [name for name in config.__fields__ if getattr(config, name) != getattr(used, name)]
        links_config = self._other_links_config(used)
        changes_links = links_config != self._links_config
        opened = (
            await self.loading.links.open_another(lambda: self._open_links(links_config))
            if changes_links
            else None
        )
        try:
            await reconfigure_server(
                self.server, used, status_client=resolve_client(environ=shell_environment()).config
            )
        except BaseException:
            if opened is not None:
                await opened.stack.aclose()
            raise
        self.config = used
        if changes_links:
            self._links_config = links_config
            await self.loading.links.use(lambda: self._open_links(links_config), opened)
        await self.access.reconfigure(used, shell_environment())
        lines = ["Reconfiguring Secure PVAccess"]
        lines += [f"{name} has changed: it is used after a restart" for name in waiting]
        return lines

    def group_lines(self, level: int, pattern: str) -> list[str]:
        """Return a list of the groups."""
        return reports.group_lines(self.groups.groups() if self.groups is not None else (), level, pattern)

    def link_lines(self, level: int, pattern: str) -> list[str]:
        """Return a report of the PVA links."""
        return self.loading.links.lines(pattern, level)

    # -- end -----------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Close clients, events and database, in this order."""
        # A script that still runs must not go on to iocInit, which writes to devices.
        self._is_stopping = self.loading.script.is_stopped = True
        await self._end_start()
        await self._stack.aclose()
        self.loading.reread.ask = None
        if self._rereading is not None:
            await asyncio.gather(self._rereading, return_exceptions=True)
        await self.stats.stop()
        await asyncio.to_thread(self.autosave.close)
        await self.loading.links.close()
        await self.access.close()
        if self.records is not None:
            self.records.close()
        if self.groups is not None:
            self.groups.close()
        if self.stream is not None:
            self.stream.close()
        await asyncio.to_thread(dbcore.shutdown)
