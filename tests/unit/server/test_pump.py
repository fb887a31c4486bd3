"""Updates leave at the end of a turn of the event loop, connection by connection."""

from __future__ import annotations

import asyncio

from appliance.server.pump import Pump


class Waiting:
    def __init__(self, name: str, log: list[str], pump: Pump, again: int = 0) -> None:
        self.name = name
        self._log = log
        self._pump = pump
        self._again = again

    def pump(self) -> None:
        self._log.append(self.name)
        if self._again:
            self._again -= 1
            self._pump.soon(self)

    def broken(self, error: Exception) -> None:
        raise AssertionError(error)


async def test_all_that_wait_are_pumped_in_the_order_in_which_they_came_and_none_before_the_turns_end() -> (
    None
):
    pump = Pump(asyncio.get_running_loop())
    log: list[str] = []
    for name in "abc":
        pump.soon(Waiting(name, log, pump))
    assert log == []
    await asyncio.sleep(0)
    assert log == ["a", "b", "c"]


async def test_who_has_more_goes_on_in_the_next_turn_behind_the_others() -> None:
    pump = Pump(asyncio.get_running_loop())
    log: list[str] = []
    pump.soon(Waiting("a", log, pump, again=2))
    pump.soon(Waiting("b", log, pump, again=1))
    await asyncio.sleep(0)
    assert log == ["a", "b"]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert log == ["a", "b", "a", "b", "a"]


class Defective(Waiting):
    error: Exception | None = None

    def pump(self) -> None:
        super().pump()
        raise RuntimeError(self.name)

    def broken(self, error: Exception) -> None:
        self.error = error


async def test_a_defect_of_one_does_not_stop_the_others() -> None:
    pump = Pump(asyncio.get_running_loop())
    log: list[str] = []
    defective = Defective("a", log, pump)
    pump.soon(defective)
    pump.soon(Waiting("b", log, pump))
    await asyncio.sleep(0)
    assert log == ["a", "b"]
    assert str(defective.error) == "a"
    pump.soon(Waiting("c", log, pump))
    await asyncio.sleep(0)
    assert log == ["a", "b", "c"]
