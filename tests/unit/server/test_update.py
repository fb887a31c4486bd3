"""One posted change: encoded once for all who want the same, and squashed without losing what changed."""

from __future__ import annotations

from appliance.pva.selection import encode_update
from appliance.pvdata.types import FLOAT64, INT32, StructType
from appliance.server.operation import Update

KIND = StructType((("a", FLOAT64), ("b", INT32)))
A, B = (1 << KIND.offsets[name] for name in "ab")


def store(a: float, b: int) -> list[object]:
    return [None, a, b]


def test_those_who_want_the_same_get_the_same_octets() -> None:
    update = Update(KIND, store(1.5, 2), A | B)
    wanted = ((A, False), (A | B, False), (A, True), (B, True))
    first = [update.encoded(mask, big=big) for mask, big in wanted]
    again = [update.encoded(mask, big=big) for mask, big in wanted]
    assert all(one is other for one, other in zip(first, again, strict=True))
    assert first == [encode_update(KIND, mask & (A | B), 0, store(1.5, 2), big=big) for mask, big in wanted]


def test_a_squashed_update_has_the_last_values_all_that_changed_and_what_was_lost() -> None:
    squashed = Update(KIND, store(1.0, 0), A).squash(Update(KIND, store(1.0, 2), B))
    assert (squashed.bits, squashed.overrun) == (A | B, 0)
    squashed = squashed.squash(Update(KIND, store(3.0, 2), A))
    assert (squashed.store, squashed.bits, squashed.overrun) == (store(3.0, 2), A | B, A)
    squashed = squashed.squash(Update(KIND, store(3.0, 4), B))
    assert squashed.overrun == A | B, "what was lost stays said"
