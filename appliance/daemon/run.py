"""The main loop that every daemon shares: start, readiness, reload, clean stop, exit status."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from appliance.daemon.garbage import LOOK_S, Collector
from appliance.daemon.notify import Notifier
from appliance.errors import ApplianceError

__all__ = ["EXIT_DEFECT", "EXIT_FAILURE", "EXIT_OK", "Daemon", "run"]

EXIT_OK: Final = 0
EXIT_FAILURE: Final = 1
"""Exit status after an error that one sentence on stderr explains: configuration, network, certificates."""
EXIT_DEFECT: Final = 70
"""Exit status after a defect in the program (EX_SOFTWARE); the stack trace is on stderr."""
_LEAST_S: Final = 2.0
"""Seconds that threads get at least, however short the grace period."""

_log: Final = logging.getLogger(__name__)
_Reload = Callable[[], Awaitable[None] | None]


class Daemon:
    """What a daemon's main function gets, for signals and the service manager."""

    def __init__(self, name: str, notifier: Notifier) -> None:
        self.name = name
        self.notifier = notifier
        self.stopping = asyncio.Event()
        """Set when a stop is requested, by a signal or by `stop`."""
        self._callbacks: list[_Reload] = []
        self._reload_wanted = asyncio.Event()
        self._status = ""
        self.started = False
        """Whether `ready` was called."""

    def on_reload(self, callback: _Reload) -> None:
        """Call ``callback`` (plain or async) on SIGHUP.

        An ApplianceError that it raises is reported, and the daemon goes on with its former settings.
        """
        self._callbacks.append(callback)

    def ready(self, status: str = "") -> None:
        """Tell the service manager that the service can be used."""
        self.started = True
        self._status = status or self._status
        self.notifier.ready(status)

    def status(self, text: str) -> None:
        """Tell the service manager one line for ``systemctl status``."""
        self._status = text
        self.notifier.status(text)

    def stop(self) -> None:
        """Ask for a clean stop."""
        self.stopping.set()

    async def wait(self) -> None:
        """Return when a stop is requested. This is the last line of most main functions."""
        await self.stopping.wait()

    def reload(self) -> None:
        """Ask for a reload, as SIGHUP does. Requests during a reload cause one more reload."""
        self._reload_wanted.set()

    async def _reloader(self) -> None:
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted.clear()
            self.notifier.reloading()
            faults = []
            for callback in self._callbacks:
                try:
                    result = callback()
                    if result is not None:
                        await result
                except ApplianceError as error:
                    faults.append(str(error))
                    _log.error("%s: reload failed, the former settings stay: %s", self.name, error)
            if self.started:
                self.notifier.ready(f"reload failed: {faults[0]}" if faults else self._status)

    async def _tidy(self, collector: Collector) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            collector.look()

    async def _feeder(self, period_s: float) -> None:
        # On the event loop itself, on purpose: a blocked loop sends nothing, and the manager restarts the service.
        while True:
            self.notifier.watchdog()
            await asyncio.sleep(period_s)


def run(
    main: Callable[[Daemon], Coroutine[Any, Any, None]],
    *,
    name: str,
    grace_s: float = 10.0,
    notifier: Notifier | None = None,
) -> int:
    """Run a daemon until its main function returns or a signal stops it.

    SIGTERM and SIGINT set ``Daemon.stopping``. A main function that has not returned ``grace_s`` seconds later is cancelled. A
    second signal, or one before `Daemon.ready` was called, cancels it at once. A thread that has not ended ``grace_s`` seconds after
    the main function is left behind: no program can end a thread that waits in the system. SIGHUP runs the reload callbacks. An
    ApplianceError becomes one sentence on stderr and status 1.

    Returns:
        The exit status.
    """
    import uvloop

    notifier = notifier or Notifier()
    leaving = threading.Timer(max(grace_s, _LEAST_S), _leave, (name,))
    leaving.daemon = True
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            try:
                return runner.run(_supervise(main, name, grace_s, notifier))
            finally:
                leaving.start()  # to leave the block waits for threads without limit
    except ApplianceError as error:
        _say(f"Error: {error}")
        return EXIT_FAILURE
    except Exception:  # noqa: BLE001 - the last line of defence turns a defect into a status and a trace
        import traceback

        _say(f"{name}: a defect in this program stopped it:\n{traceback.format_exc()}")
        return EXIT_DEFECT
    finally:
        leaving.cancel()
        notifier.close()


def _leave(name: str) -> None:
    """End the process although a thread still runs."""
    _say(f"{name}: a thread did not end, so the program ends without it")
    os._exit(EXIT_FAILURE)


async def _supervise(
    main: Callable[[Daemon], Coroutine[Any, Any, None]], name: str, grace_s: float, notifier: Notifier
) -> int:
    loop = asyncio.get_running_loop()
    daemon = Daemon(name, notifier)
    collector = Collector()
    collector.start()
    work = loop.create_task(main(daemon), name=name)

    def on_stop() -> None:
        if daemon.stopping.is_set():
            work.cancel()
        daemon.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_stop)
    loop.add_signal_handler(signal.SIGHUP, daemon.reload)
    helpers = [loop.create_task(daemon._reloader(), name=f"{name} reload")]
    helpers.append(loop.create_task(daemon._tidy(collector), name=f"{name} garbage"))
    if notifier.watchdog_s:
        helpers.append(loop.create_task(daemon._feeder(notifier.watchdog_s / 2), name=f"{name} watchdog"))
    stop = loop.create_task(daemon.stopping.wait(), name=f"{name} stop")
    cut_short = False
    try:
        await asyncio.wait([work, stop, *helpers], return_when=asyncio.FIRST_COMPLETED)
        asked = daemon.stopping.is_set()
        notifier.stopping()
        daemon.stop()
        if not daemon.started:
            # Nothing needs to be finished yet, and a main function that is still starting does not check for a stop.
            work.cancel()
        if not work.done():
            await asyncio.wait([work], timeout=grace_s)
        if not work.done():
            _log.error("%s: did not stop within %g s and is cancelled", name, grace_s)
            cut_short = True
            work.cancel()
            await asyncio.wait([work], timeout=grace_s)
        # A reload callback that fails with another error than ApplianceError is a defect and must be seen.
        for helper in helpers:
            if helper.done():
                helper.result()
    finally:
        for task in (work, stop, *helpers):
            task.cancel()
        await asyncio.gather(stop, *helpers, return_exceptions=True)
        collector.stop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)
    if work.done() and not work.cancelled():
        work.result()
        return EXIT_FAILURE if cut_short else EXIT_OK
    return EXIT_OK if asked and not cut_short else EXIT_FAILURE


def _say(text: str) -> None:
    # stderr may be closed (a closed terminal); then nobody is left to tell.
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - the one place where a daemon speaks without a logger
