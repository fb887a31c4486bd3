"""All objects that Python knows, counted without harm to the other threads.

While a list from ``gc.get_objects`` exists, it holds the tuples that other threads are just making, and Python then cannot finish them:
``tuple(iterable)`` in another thread fails with ``SystemError: bad argument to internal function`` (seen with CPython 3.11, as
a connection that ended because somebody counted objects). So the list is made, used and freed inside one call of C code,
in which no other thread runs.
"""

from __future__ import annotations

import gc
from collections import Counter
from itertools import chain

__all__ = ["count_types"]


def count_types() -> Counter[type]:
    """Count the objects by their type; those that Python's garbage collector does not know, such as numbers, are not counted.

    What was set aside (``gc.freeze``) is counted too.
    """
    counts: Counter[type] = Counter()
    put_aside = gc.get_freeze_count() > 0
    was_enabled = gc.isenabled()
    # Finalizers are Python code, in which threads take turns.
    gc.disable()
    if put_aside:
        gc.unfreeze()
    try:
        # The list is made when the first object is asked for, and freed with the last.
        counts.update(map(type, chain.from_iterable(map(gc.get_objects, (None,)))))
    finally:
        if put_aside:
            gc.freeze()
        if was_enabled:
            gc.enable()
    return counts
