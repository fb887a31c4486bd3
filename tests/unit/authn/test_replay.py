"""Used tokens in memory."""

from __future__ import annotations

from tests.helpers.replay import MemoryReplayStore


async def test_once_until_its_end() -> None:
    store = MemoryReplayStore()
    assert await store.use("i", "a", 100, 0)
    assert not await store.use("i", "a", 100, 99)
    assert await store.use("j", "a", 100, 99)
    assert await store.use("i", "b", 100, 99)


async def test_nothing_is_kept_longer_than_needed() -> None:
    store = MemoryReplayStore()
    for number in range(1000):
        assert await store.use("i", str(number), number + 10, number)
    assert len(store._used) <= 10


async def test_a_step_of_the_clock_back_does_not_revive() -> None:
    store = MemoryReplayStore()
    assert await store.use("i", "a", 100, 0)
    assert await store.use("i", "b", 5000, 4000)
    assert not await store.use("i", "a", 100, 0)
    assert not await store.use("i", "unknown, may have been forgotten", 100, 0)
    assert await store.use("i", "c", 4500, 0)


async def test_a_full_store_refuses_rather_than_forgets() -> None:
    store = MemoryReplayStore(limit=3)
    for number in range(4):
        assert await store.use("i", str(number), 100 + number, 0)
    assert not await store.use("i", "0", 100, 0)
    assert await store.use("i", "new", 200, 0)
