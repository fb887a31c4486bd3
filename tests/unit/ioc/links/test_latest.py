"""Updates that stay octets mean the same as those that are decoded, whatever fields they bring."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.ioc.dbcore.link_support import IN_LINK, LinkPlace
from appliance.ioc.links.channel import ChannelKey, LinkChannel
from appliance.ioc.links.latest import Assembly, Latest
from appliance.ioc.links.link import PvaLink
from appliance.ioc.links.options import LinkOptions, Severity
from appliance.ioc.links.remote import _Subscription
from appliance.pva.selection import encode_update, leaves
from appliance.pvdata.nt import NTEnum, NTScalar
from appliance.pvdata.types import BOOL, FLOAT32, FLOAT64, INT8, INT32, INT64, STRING, UINT64, StructType
from appliance.pvdata.value import Value

KINDS = [NTScalar(kind) for kind in (FLOAT64, FLOAT32, INT32, INT8, INT64, UINT64, BOOL, STRING)] + [NTEnum()]
NAMES = ["float64", "float32", "int32", "int8", "int64", "uint64", "bool", "string", "enum"]
PATHS = ("value", "alarm.severity", "alarm.message", "timeStamp.secondsPastEpoch", "timeStamp.nanoseconds")
CHANGES = st.lists(
    st.tuples(st.sets(st.sampled_from(PATHS), min_size=1), st.integers(0, 3), st.booleans()),
    min_size=1,
    max_size=8,
)


class Nobody:
    """Links without a loop and without a worker."""

    def push(self, work: Any) -> None:
        """Do nothing."""

    def on_loop(self, function: Any) -> None:
        """Do nothing."""


def update(kind: StructType, paths: set[str], number: int, big: bool, store: list[Any]) -> tuple[bytes, int]:
    """Write ``number`` into some fields of a store; return the update that says so, and its fields."""
    value = Value.from_store(kind, store)
    for path in paths:
        if path == "value" and "value.index" in kind.offsets:
            path = "value.index"
        here = kind.leaf_types[kind.offsets[path]]
        value[path] = str(number) if here == STRING else number
    store[:] = value.store
    selected = leaves(kind, sum(1 << kind.offsets[path] for path in paths))
    return encode_update(kind, selected, 0, store, big=big), selected


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
@settings(max_examples=40)
@given(CHANGES)
def test_updates_add_up_to_the_same_value(
    kind: StructType, changes: list[tuple[set[str], int, bool]]
) -> None:
    assembly = Assembly(kind)
    store = Value(kind).store
    made: list[tuple[Latest, list[Any]]] = []
    for paths, number, big in changes:
        body, bits = update(kind, paths, number, big, store)
        made.append((assembly.add(body, bits, big), list(store)))
    for latest, wanted in reversed(made):
        assert latest.store == wanted


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
@settings(max_examples=40)
@given(CHANGES, st.integers(0, 11), st.sampled_from(Severity))
def test_a_number_is_read_as_from_the_decoded_value(
    kind: StructType, changes: list[tuple[set[str], int, bool]], dbr: int, severity: Severity
) -> None:
    channel = LinkChannel(ChannelKey("pv", 4, False, False), Nobody())
    place = LinkPlace(1, 1, "rec", "INP", IN_LINK)
    link = PvaLink(place, LinkOptions("pv", sevr=severity), channel, lambda _: None)
    assembly = Assembly(kind)
    store = Value(kind).store
    for paths, number, big in changes:
        channel.take(assembly.add(*update(kind, paths, number, big, store), big))
        short = link.read_number(dbr)
        alarm, stamp = link.alarm(), link.stamp()
        whole = link.read(dbr, None)
        if short is not None:
            assert (short, 0) == (whole.data, whole.severity)
            assert (alarm, stamp) == (link.alarm(), link.stamp())


def test_the_usual_update_of_a_number_is_not_decoded() -> None:
    kind = KINDS[0]
    channel = LinkChannel(ChannelKey("pv", 4, False, False), Nobody())
    place = LinkPlace(1, 1, "rec", "INP", IN_LINK)
    link = PvaLink(place, LinkOptions("pv", sevr=Severity.MS), channel, lambda _: None)
    assembly = Assembly(kind)
    store = Value(kind).store
    usual = {"value", "timeStamp.secondsPastEpoch", "timeStamp.nanoseconds"}
    for number in range(1, 4):
        latest = assembly.add(*update(kind, usual, number, False, store), False)
        channel.take(latest)
        for dbr in (10, 5):
            assert link.read_number(dbr) is not None
        assert latest._store is None
        assert link.stamp() == (number, number, 0)


def test_what_comes_during_a_pause_waits_and_only_the_latest_counts() -> None:
    kind = KINDS[0]
    taken: list[float] = []
    source = SimpleNamespace(
        take=None,
        last=None,
        is_held=False,
        channel=SimpleNamespace(take=lambda value: taken.append(value.store[1])),
    )
    link = SimpleNamespace(held=None)
    channel: Any = SimpleNamespace(end=SimpleNamespace(loop=Mock()), link=link)
    subscription = _Subscription(source, channel, Value(kind), 4)  # type: ignore[arg-type]
    subscription._assembly = Assembly(kind)
    subscription.operation = SimpleNamespace(quick_bits=2)  # type: ignore[assignment]
    store = Value(kind).store

    def gathered(number: int) -> None:
        subscription.gathered(update(kind, {"value"}, number, False, store)[0])

    gathered(1)
    link.held = "a verdict"
    gathered(2)
    gathered(3)
    assert taken == [1.0]
    link.held = None
    subscription.resumed()
    subscription.resumed()
    assert taken == [1.0, 3.0]
    gathered(4)
    assert taken == [1.0, 3.0, 4.0]
