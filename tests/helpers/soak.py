"""What tests of many minutes have in common: jobs beside them, and how the memory of a process grows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Sequence

import numpy as np

FLAT = 8 << 20
"""Octets that the second half of a soak may add: an allocator's own movements are below it."""


def slope(samples: Sequence[tuple[float, int]]) -> float:
    """Growth in KiB per minute: least squares over the second half."""
    half = np.array(samples[len(samples) // 2 :], dtype=float)
    return float(np.polyfit(half[:, 0], half[:, 1], 1)[0]) / 1024 * 60


@contextlib.asynccontextmanager
async def background(*jobs: Coroutine[object, object, None]) -> AsyncIterator[None]:
    """Run jobs beside what is within. One that has ended by itself before the end fails the test with its error."""
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        yield
    finally:
        for task in tasks:
            if task.done():
                task.result()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
