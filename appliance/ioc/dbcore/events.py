"""Database events in batches: one wake-up of the event loop for all channels with new events.

An :class:`EventHub` owns one event thread of EPICS and one waiting thread of Python. What it hands out are the
*keys* of subscriptions, each at most once per batch and in the order of the first event. The value is not part
of it: the receiver of a key reads the channel, so that a channel that changed three times since the last batch
is read once and shows its latest state. EPICS keeps the value at the time of the event in a field log, up to
four per subscription, before it squashes in the same way; for arrays and strings it keeps none and reads late,
as is done here for all types.

EPICS may warn once per queue of "possible queue stall" when a subscription ends while events are waiting for it; this
is harmless, and no event is late.

Which kind of event it was follows from the subscription: a caller who must tell VALUE from ALARM makes two
subscriptions with two keys.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import threading
import time
from collections.abc import Callable, Hashable
from ctypes import c_void_p
from typing import Final

from appliance.errors import ApplianceError
from appliance.ioc.dbcore import _c
from appliance.ioc.dbcore.channel import DBChannel
from appliance.ioc.dbcore.rings import CallbackRing, PointerRing, Ring, ring_works
from appliance.ioc.dbcore.wakers import LoopWaker, Wake, waker_works

_log = logging.getLogger(__name__)

# caeventmask.h
DBE_VALUE: Final = 1
#: also called DBE_LOG
DBE_ARCHIVE: Final = 2
DBE_ALARM: Final = 4
DBE_PROPERTY: Final = 8

#: QSRV's priority of its event thread, one below that of the lowest Channel Access server thread.
_PRIORITY: Final = 19
#: Events taken in one go; more are taken after the loop has had its turn.
_BATCH: Final = 32768
#: A batch of more keys than this makes the hub collect for a while before it wakes the loop again.
_BUSY: Final = 16
# Event queues of one thread are served in turn, and the queue of a channel's wake-up may be served before the
# queue of its event. Looking once more after this time, and every second, closes that gap.
_GRACE_S: Final = 0.02
_IDLE_S: Final = 1.0


class EventSubscription:
    """One channel's events of one mask; see :meth:`EventHub.subscribe`."""

    __slots__ = ("_event", "_hub", "_trigger", "channel", "key", "mask")

    def __init__(
        self, hub: EventHub, channel: DBChannel, mask: int, key: Hashable, event: int, trigger: int | None
    ) -> None:
        self._hub = hub
        self.channel = channel
        self.mask = mask
        self.key = key
        self._event: int | None = event
        self._trigger = trigger

    def enable(self) -> None:
        """Enable events (db_event_enable)."""
        if self._event is not None:
            _c.db_event_enable(self._event)
            if self._trigger is not None:
                _c.db_event_enable(self._trigger)

    def disable(self) -> None:
        """Disable events until :meth:`enable` (db_event_disable)."""
        if self._event is not None:
            if self._trigger is not None:
                _c.db_event_disable(self._trigger)
            _c.db_event_disable(self._event)

    def cancel(self) -> None:
        """End the subscription (db_cancel_event); its key does not appear in later batches."""
        if self._event is None:
            return
        event, trigger = self._event, self._trigger
        self._event = self._trigger = None
        self._hub._forget(self)
        if trigger is not None:
            _c.db_cancel_event(trigger)
        _c.db_cancel_event(event)


class EventHub:
    """Collects the events of many channels and hands them over in batches.

    Args:
        deliver: called with a list of keys: on the event loop's thread, or without a loop on the hub's own
            thread.
        loop: the running event loop that ``deliver`` belongs to.
        name: name of the threads.
        ring_size: events per mask that can wait; if more come, all channels of the mask are delivered as changed.
        collect_s: seconds to collect before the loop is woken again while many channels change. The first
            event after a quiet time is delivered at once.
        plain_callbacks: use Python callbacks even where C callbacks work.

    Raises:
        ApplianceError: EPICS cannot make an event thread.

    """

    def __init__(
        self,
        deliver: Callable[[list[Hashable]], None],
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        name: str = "qsrv",
        ring_size: int = 65536,
        collect_s: float = 0.005,
        plain_callbacks: bool = False,
    ) -> None:
        self._deliver = deliver
        self._loop = loop
        self._ring_size = ring_size
        self._collect_s = collect_s
        #: events take the way through C
        self.is_direct = ring_works() and not plain_callbacks
        self._rings: dict[int, tuple[Ring, dict[int, Hashable]]] = {}
        self._subscriptions: set[EventSubscription] = set()
        self._at_once: dict[int, int] = {}
        """The records of the channels whose events wake the loop themselves."""
        self._lock = threading.Lock()
        self._scheduled = False
        self._last_batch = 0
        self._closed = False
        #: counters since the start: wake-ups of the loop, events taken from the rings, keys delivered, and how
        #: often events were lost and all channels of a mask delivered instead
        self.wakeups = self.events = self.overflows = 0
        self._event = c_void_p(_c.epicsEventCreate(0))
        self._context = c_void_p(_c.db_init_events())
        if not self._event.value or not self._context.value:
            raise ApplianceError("EPICS cannot make a context for database events")
        if _c.db_start_events(self._context, name.encode(), None, None, _PRIORITY):
            raise ApplianceError("EPICS cannot start the thread for database events")
        self._trigger = Wake(ctypes.cast(_c.com.epicsEventTrigger, c_void_p), self._event)
        self._waker = (
            LoopWaker(loop, self._woken) if loop is not None and self.is_direct and waker_works() else None
        )
        self._looks_again = self._is_woken_meanwhile = False
        self._thread = threading.Thread(target=self._wait, name=f"{name}-events", daemon=True)
        self._thread.start()

    # -- subscriptions -----------------------------------------------------------------------------------------

    def subscribe(
        self, channel: DBChannel, mask: int, key: Hashable, *, enabled: bool = True, at_once: bool = False
    ) -> EventSubscription:
        """Subscribe to a channel (db_add_event).

        Read the channel after this call, not before: then no change is missed.

        Args:
            channel: must stay open until the subscription is cancelled.
            mask: DBE_VALUE, DBE_ARCHIVE, DBE_ALARM, DBE_PROPERTY, or several of them.
            key: passed to :attr:`deliver`; must be hashable.
            enabled: False to start with :meth:`EventSubscription.enable`.
            at_once: each event wakes the loop itself, where that is possible. This costs a system call for each event, and saves
                the waiting thread: for values that cost more than that.

        Raises:
            ApplianceError: there is a subscription with this mask already, or EPICS has no memory left.

        """
        if self._closed:
            raise ApplianceError("the event hub is closed")
        with self._lock:
            ring, keys = self._ring(mask)
            if channel.address in keys:
                raise ApplianceError(f"{channel.name} already has a subscription with mask {mask}")
            keys[channel.address] = key
        event = _c.db_add_event(self._context, channel.address, ring.callback, ring.argument, mask)
        trigger = None
        if event and self.is_direct:
            # Added after the ring, so that it is also queued after it.
            wake: Wake | LoopWaker = self._trigger
            if at_once and self._waker is not None:
                wake = self._waker
                self._at_once[channel.address] = channel.record_address
            trigger = _c.db_add_event(self._context, channel.address, wake.function, wake.argument, mask)
        if not event or (self.is_direct and not trigger):
            with self._lock:
                del keys[channel.address]
            self._at_once.pop(channel.address, None)
            if event:
                _c.db_cancel_event(event)
            raise ApplianceError(f"EPICS cannot subscribe to {channel.name} with mask {mask}")
        subscription = EventSubscription(self, channel, mask, key, event, trigger)
        self._subscriptions.add(subscription)
        if enabled:
            subscription.enable()
        return subscription

    def _ring(self, mask: int) -> tuple[Ring, dict[int, Hashable]]:
        found = self._rings.get(mask)
        if found is None:
            ring: Ring = (
                PointerRing(self._ring_size)
                if self.is_direct
                else CallbackRing(lambda: _c.epicsEventTrigger(self._event))
            )
            found = self._rings[mask] = (ring, {})
        return found

    def _forget(self, subscription: EventSubscription) -> None:
        with self._lock:
            self._subscriptions.discard(subscription)
            if subscription.mask in self._rings:
                _, keys = self._rings[subscription.mask]
                keys.pop(subscription.channel.address, None)
            self._at_once.pop(subscription.channel.address, None)

    # -- the waiting thread ------------------------------------------------------------------------------------

    def _wait(self) -> None:
        timeout = _IDLE_S
        while True:
            woken = _c.epicsEventWaitWithTimeout(self._event, timeout) == 0
            if self._closed:
                return
            if not woken and not self._waiting():
                timeout = _IDLE_S
                continue
            timeout = _GRACE_S
            if not self._scheduled:
                self._schedule()
                if self._last_batch > _BUSY:
                    time.sleep(self._collect_s)

    def _waiting(self) -> bool:
        for ring, _ in list(self._rings.values()):  # noqa: SIM110 - a generator costs more than the few rings
            if ring.waiting():
                return True
        return False

    def _schedule(self) -> None:
        self._scheduled = True
        if self._loop is None:
            self._drain()
            return
        try:
            self._loop.call_soon_threadsafe(self._drain)
        except RuntimeError:
            # The loop is closed: there is no receiver any more.
            self._closed = True

    # -- the loop's thread -------------------------------------------------------------------------------------

    def _woken(self) -> None:
        """Take events: one has woken the loop itself."""
        assert self._waker is not None
        if self._looks_again:
            self._is_woken_meanwhile = True
        else:
            self._look_later()
        try:
            self._wait_for_record()
            if self._waiting():
                self._drain()
        finally:
            # Not before: most events that come meanwhile are taken together, and need no turn of their own.
            self._waker.clear()
        if not self._closed and self._waiting():
            self._drain()

    def _wait_for_record(self) -> None:
        """Wait until the record of the first event is done.

        Records often change one after the other under one lock. Reading the first one alone would wait for that lock as well,
        and the others would take another turn.
        """
        for ring, _ in list(self._rings.values()):
            record = self._at_once.get(ring.first())
            if record is not None:
                _c.dbScanLock(record)
                _c.dbScanUnlock(record)
                return

    def _look_later(self) -> None:
        """Look once more soon: a wake-up may come before its event is in the ring."""
        assert self._loop is not None
        self._looks_again = True
        self._loop.call_later(_GRACE_S, self._look_again)

    def _look_again(self) -> None:
        again, self._is_woken_meanwhile = self._is_woken_meanwhile, False
        self._looks_again = False
        if self._closed:
            return
        if self._waiting():
            self._woken()
        elif again:
            self._look_later()

    def _drain(self) -> None:
        if self._closed:
            return
        # Reset this before events are taken: an event that comes from now on schedules the next turn.
        self._scheduled = False
        self.wakeups += 1
        changed: dict[Hashable, None] = {}
        more = False
        for ring, keys in list(self._rings.values()):
            taken, lost = ring.take(_BATCH)
            self.events += len(taken)
            more = more or len(taken) == _BATCH
            if lost:
                self.overflows += 1
                with self._lock:
                    changed.update(dict.fromkeys(keys.values()))
            else:
                # Most events of a busy ring are of channels that are in it already: those cost no look-up of the key.
                changed.update(dict.fromkeys(map(keys.get, dict.fromkeys(taken))))
        changed.pop(None, None)  # subscriptions that have ended
        self._last_batch = len(changed)
        if more:
            _c.epicsEventTrigger(self._event)
        if changed:
            try:
                self._deliver(list(changed))
            except Exception:  # noqa: BLE001 - one bad batch must not end all monitors
                _log.exception("delivery of %d database events failed", len(changed))

    def close(self) -> None:
        """Cancel all subscriptions and stop both threads; their channels must still be open."""
        if self._context.value is None:
            return
        for subscription in list(self._subscriptions):
            subscription.cancel()
        self._closed = True
        _c.epicsEventTrigger(self._event)
        if threading.current_thread() is not self._thread:
            self._thread.join()
        _c.db_close_events(self._context)
        self._context.value = None
        if self._waker is not None:
            self._waker.close()
        for ring, _ in self._rings.values():
            ring.close()
        self._rings.clear()
        _c.epicsEventDestroy(self._event)
