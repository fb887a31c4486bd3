"""The IOC as one thing: database, server, access security, shell commands."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Final

from appliance.config.pva import ServerConfig
from appliance.errors import ConfigurationError
from appliance.ioc import dbcore
from appliance.ioc.config import LoadStep, Plan
from appliance.ioc.dbcore import InitHook
from appliance.ioc.demo import DEMO_DEFINITION, register_demo
from appliance.ioc.feed import EventStream
from appliance.ioc.single import RecordSource
from appliance.server.server import Server

__all__ = ["Ioc"]

_log: Final = logging.getLogger(__name__)


class Ioc:
    """One per process: EPICS' database is one. All methods belong to the event loop's thread."""

    def __init__(self, plan: Plan, config: ServerConfig) -> None:
        self.plan = plan
        self.config = config
        self.loop = asyncio.get_running_loop()
        self.server = Server(config)
        self.stream: EventStream | None = None
        self.records: RecordSource | None = None
        self.attached = asyncio.Event()
        """Set once records are served."""

    # -- start ---------------------------------------------------------------------------------------

    def load(self) -> None:
        """Load definition and databases. Raises ConfigurationError. Blocks: call it in a thread."""
        plan = self.plan
        register_demo()
        self._say(f'dbLoadDatabase("{plan.definition or "softIoc.dbd"}")')
        dbcore.boot(plan.definition or None, channel_access=plan.channel_access)
        dbcore.load_definition_text(DEMO_DEFINITION)
        dbcore.register_support()
        dbcore.on_init_hook(self._on_init)
        for step in plan.databases:
            self._load_records(step)
        if plan.exit_prefix:
            dbcore.load_records_text(dbcore.EXIT_RECORDS, {"IOC": plan.exit_prefix})

    def _load_records(self, step: LoadStep) -> None:
        self._say(f'dbLoadRecords("{step.file}"{f", {step.macros!r}" if step.macros else ""})')
        dbcore.load_records(step.file, step.macros or None)

    def _say(self, text: str) -> None:
        if self.plan.is_verbose:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()

    async def start(self) -> None:
        """Listen, run the script, initialise; records are served when this returns.

        Raises ConfigurationError or TransportError.
        """
        await asyncio.to_thread(self.load)
        await self.server.start()
        plan = self.plan
        if plan.script:
            self._say(f"# Begin {plan.script}")
            await asyncio.to_thread(dbcore.shell_script, plan.script)
            self._say(f"# End {plan.script}")
        if plan.loads_records and dbcore.ioc_state() is dbcore.IocState.VOID:
            self._say("iocInit()")
            await asyncio.to_thread(dbcore.ioc_init)
        if dbcore.ioc_state() >= dbcore.IocState.RUNNING:
            await self.attached.wait()
        elif not plan.is_interactive:
            raise ConfigurationError(
                "the script ended without iocInit, and nobody is there to type it", file=plan.script
            )

    def _on_init(self, state: int) -> None:
        """EPICS' hook: called in whatever thread runs iocInit."""
        if state == InitHook.AFTER_IOC_RUNNING and not self.attached.is_set():
            asyncio.run_coroutine_threadsafe(self._attach(), self.loop).result()

    async def _attach(self) -> None:
        """Serve the records."""
        if self.attached.is_set():
            return
        self.stream = EventStream(self.loop)
        self.records = RecordSource(self.stream)
        self.server.add_source("qsrvSingle", self.records)
        self.attached.set()

    # -- end -----------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Close clients, events and database, in this order."""
        await self.server.stop()
        if self.records is not None:
            self.records.close()
        if self.stream is not None:
            self.stream.close()
        await asyncio.to_thread(dbcore.shutdown)
