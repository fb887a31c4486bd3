"""Clients of p4p's API and servers that break the protocol: each request ends in its time and says why, and no other PV suffers."""

from __future__ import annotations

import asyncio
import logging
import queue
import random
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from appliance.p4p.client import asyncio as on_loop
from appliance.p4p.client.thread import Cancelled, Context, Disconnected, Finished, RemoteError
from appliance.pva.selection import encode_update
from appliance.pvdata import UnionType, UnionValue
from appliance.pvdata.fielddesc import encode_type
from appliance.pvdata.nt import NTEnum, NTNDArray, NTScalar
from appliance.pvdata.types import FLOAT64, INT32, STRING, StructType
from appliance.pvdata.value import Value
from appliance.server.sharedpv import SharedPV
from tests.helpers.live import number
from tests.helpers.raw_server import GET, MONITOR, OK, PUT, RPC, Conversation, RawServer, message
from tests.helpers.served import Served, served

PATIENCE_S = 30.0
SHORT_S = 0.3
"""For requests that nobody answers."""
KIND = NTScalar(FLOAT64)
ALL = b"\x01\x01"


@pytest.fixture(scope="module")
def good() -> Iterator[Served]:
    with served(good=number(1.5)) as there:
        yield there


def opened(described: bytes, reply: Callable[[Conversation, int, int, int], None] | None = None) -> Any:
    """Answer INIT with a type, and what follows with ``reply``, which gets command, ioid and sub-command."""

    def answer(client: Conversation, command: int, body: bytes) -> None:
        if command not in (GET, PUT, MONITOR, RPC):
            return
        _, ioid, sub = struct.unpack_from("<IIB", body)
        if sub & 8:
            kind = b"" if command == RPC else described
            client.send(message(command, struct.pack("<IB", ioid, sub) + OK + kind))
        elif reply is not None:
            reply(client, command, ioid, sub)

    return answer


def replied(after: bytes, *, ioid: int = 0) -> Any:
    def reply(client: Conversation, command: int, number: int, sub: int) -> None:
        client.send(message(command, struct.pack("<IB", number + ioid, sub) + after))

    return opened(encode_type(KIND, False), reply)


def hang_up(client: Conversation, *_: object) -> None:
    client.sock.close()
    raise EOFError


def say(data: bytes) -> Callable[[Conversation], None]:
    def welcome(client: Conversation) -> None:
        client.send(data)
        client.until_end()

    return welcome


HOSTILE: dict[str, dict[str, Any]] = {
    "accepts and is silent": {"welcome": say(b"")},
    "no PVAccess": {"welcome": say(random.Random(1).randbytes(4000))},
    "a message of 4 GB": {"welcome": say(struct.pack("<BBBBI", 0xCA, 2, 0x40, 1, 0xFFFFFFFF) + bytes(100))},
    "closes at once": {"welcome": hang_up},
    "answers no request": {"answer": lambda *_: None},
    "closes at a request": {"answer": hang_up},
    "an unknown type": {"answer": opened(b"\x77")},
    "a type of many levels": {"answer": opened(b"\x80\x00\x01\x01a" * 5000)},
    "a type of 2^31 members": {"answer": opened(b"\x80\x00\xfe\xff\xff\xff\x7f")},
    "a scalar as a PV": {"answer": opened(b"\x43")},
    "no type": {"answer": opened(b"\xff")},
    "a value that is cut": {"answer": replied(OK + ALL + b"\0")},
    "fields that the type does not have": {"answer": replied(OK + b"\x09" + b"\xff" * 9 + bytes(100))},
    "an answer to nobody": {"answer": replied(OK + ALL + bytes(100), ioid=1000)},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_each_request_ends_in_its_time_with_a_sentence_and_harms_no_other_pv(what: str, good: Served) -> None:
    with (
        RawServer(**HOSTILE[what]) as server,
        Context("pva", conf=good.conf | server.conf_of_name_server, useenv=False) as ctxt,
    ):
        assert ctxt.get("good", timeout=PATIENCE_S) == 1.5
        for ask in (
            lambda: ctxt.get("odd:1", timeout=SHORT_S),
            lambda: ctxt.put("odd:1", 5.0, timeout=SHORT_S),
            lambda: ctxt.rpc("odd:1", None, timeout=SHORT_S),
        ):
            with pytest.raises((TimeoutError, RemoteError)) as caught:
                ask()
            assert len(str(caught.value)) < 300
            assert "odd:1: " in str(caught.value)
        assert ctxt.get("good", timeout=PATIENCE_S) == 1.5


@pytest.mark.parametrize("what", ["a type of many levels", "a value that is cut", "answers no request"])
async def test_the_client_on_a_loop_gives_up_as_well(what: str) -> None:
    with RawServer(**HOSTILE[what]) as server:
        with on_loop.Context("pva", conf=server.conf, useenv=False) as ctxt:
            with pytest.raises((TimeoutError, RemoteError)):
                await asyncio.wait_for(ctxt.get("odd:1"), SHORT_S)


def test_close_wakes_who_waits_for_a_server_that_is_silent() -> None:
    asked, ended = threading.Event(), threading.Event()

    def answer(client: Conversation, command: int, body: bytes) -> None:
        asked.set()

    with RawServer(answer) as server:
        ctxt = Context("pva", conf=server.conf, useenv=False)

        def wait() -> None:
            with pytest.raises(Cancelled):
                ctxt.get("odd:1", timeout=None)
            ended.set()

        thread = threading.Thread(target=wait)
        thread.start()
        assert asked.wait(PATIENCE_S)
        ctxt.close()
        assert ended.wait(PATIENCE_S)
        thread.join()


# -- subscriptions -------------------------------------------------------------------------------------


def update(value: float) -> bytes:
    whole = Value(KIND, value)
    return encode_update(KIND, KIND.leaf_mask, 0, whole.store, big=False)


def streamed(*bodies: tuple[int, bytes]) -> Any:
    """Send updates, each a sub-command and its body, when the subscription starts."""

    def reply(client: Conversation, command: int, ioid: int, sub: int) -> None:
        if command == MONITOR and sub & 0x44 == 0x44:
            parts = [message(MONITOR, struct.pack("<IB", ioid, code) + body) for code, body in bodies]
            client.send(b"".join(parts))

    return opened(encode_type(KIND, False), reply)


def test_a_server_that_sends_without_end_fills_no_memory_and_the_latest_value_comes() -> None:
    came: queue.Queue[Any] = queue.Queue()
    go_on = threading.Event()
    flood = [(0, update(float(number))) for number in range(20_000)]

    def slow(value: Any) -> None:
        came.put(value)
        go_on.wait(PATIENCE_S)

    with (
        RawServer(streamed(*flood, (0, update(-1.0)))) as server,
        Context("pva", conf=server.conf, useenv=False) as ctxt,
    ):
        subscription = ctxt.monitor("odd:1", slow)
        assert came.get(timeout=PATIENCE_S) == 0.0
        feed = subscription._S
        assert feed is not None
        assert ctxt.get("odd:2", timeout=SHORT_S, throw=False) is not None  # all was read meanwhile
        go_on.set()
        count = 1
        while came.get(timeout=PATIENCE_S) != -1.0:
            count += 1
        assert count < 20_000
        subscription.close()


def test_an_update_that_breaks_the_protocol_is_a_disconnect_and_the_subscription_comes_back() -> None:
    turns = iter([(0, b"\x01\x01"), (0, update(2.0))])
    lock = threading.Lock()

    def reply(client: Conversation, command: int, ioid: int, sub: int) -> None:
        if command == MONITOR and sub & 0x44 == 0x44:
            with lock:
                code, body = next(turns, (0, update(3.0)))
            client.send(message(MONITOR, struct.pack("<IB", ioid, 0) + update(1.0)))
            client.send(message(MONITOR, struct.pack("<IB", ioid, code) + body))

    came: queue.Queue[Any] = queue.Queue()
    with (
        RawServer(opened(encode_type(KIND, False), reply)) as server,
        Context("pva", conf=server.conf, useenv=False) as ctxt,
    ):
        subscription = ctxt.monitor("odd:1", came.put, notify_disconnect=True)
        items = [came.get(timeout=PATIENCE_S) for _ in range(3)]
        assert isinstance(items[0], Disconnected)
        assert items[1] == 1.0
        assert isinstance(items[2], Disconnected)
        assert "truncated" in str(items[2])
        ctxt.disconnect("odd:1")  # or the client waits a moment before it asks such a server again
        while (item := came.get(timeout=PATIENCE_S)) != 2.0:
            assert isinstance(item, Disconnected) or item == 1.0
        subscription.close()


def test_the_end_of_a_subscription_is_told_once_and_what_comes_after_it_is_not() -> None:
    came: queue.Queue[Any] = queue.Queue()
    with (
        RawServer(streamed((0, update(2.0)), (0x10, OK), (0, update(3.0)), (0x10, OK))) as server,
        Context("pva", conf=server.conf, useenv=False) as ctxt,
    ):
        subscription = ctxt.monitor("odd:1", came.put, notify_disconnect=True)
        items = [came.get(timeout=PATIENCE_S) for _ in range(3)]
        assert [type(item) for item in items[::2]] == [Disconnected, Finished]
        assert items[1] == 2.0
        assert subscription.done
        assert ctxt.get("odd:2", timeout=SHORT_S, throw=False) is not None
        assert came.empty()


def test_a_text_of_a_server_is_one_short_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    said = b"\x02\xfe" + struct.pack("<I", 70_000) + b"no\nmore\x1b[31m" * 5000 + bytes(10_000) + b"\0"
    logged = threading.Event()

    class Tells(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.set()

    log = logging.getLogger("appliance.p4p.client.thread")
    teller = Tells()
    log.addHandler(teller)
    try:
        with (
            RawServer(streamed((0x10, said[:6] + said[6:70_006] + b"\0"))) as server,
            Context("pva", conf=server.conf, useenv=False) as ctxt,
        ):
            subscription = ctxt.monitor("odd:1", print)
            assert logged.wait(PATIENCE_S)
            subscription.close()
    finally:
        log.removeHandler(teller)
    (line,) = [record.getMessage() for record in caplog.records if record.name == log.name]
    assert "the subscription to odd:1 failed: 'no\\nmore" in line
    assert len(line) < 1000
    assert line.isprintable()


# -- values that are not what their type's name says ---------------------------------------------------


def image(*sizes: int) -> Value:
    value = Value(NTNDArray())
    value["value"] = UnionValue("ubyteValue", np.arange(12, dtype="u1"))
    value["dimension"] = [{"size": size} for size in sizes]
    return value


SCALAR = "epics:nt/NTScalar:1.0"
ODD: dict[str, tuple[Value, type[Exception] | None]] = {
    "a structure": (Value(StructType([("value", StructType([("a", INT32)]))], SCALAR)), ValueError),
    "no value": (Value(StructType([("other", INT32)], SCALAR)), AttributeError),
    "an empty union": (Value(StructType([("value", UnionType([("a", INT32)]))], SCALAR)), ValueError),
    "times as text": (
        Value(
            StructType(
                [("value", FLOAT64), ("timeStamp", StructType([("secondsPastEpoch", STRING)]))], SCALAR
            ),
            {"value": 1.0, "timeStamp.secondsPastEpoch": "x"},
        ),
        ValueError,
    ),
    "a time that no calendar has": (
        Value(
            KIND, {"value": 1.0, "timeStamp.secondsPastEpoch": 2**63 - 1, "timeStamp.nanoseconds": -(2**31)}
        ),
        None,
    ),
    "an enum that is a number": (Value(StructType([("value", INT32)], "epics:nt/NTEnum:1.0")), KeyError),
    "an index that no list has": (Value(NTEnum(), {"value": {"index": -(2**31), "choices": ["a"]}}), None),
    "an image of other axes": (image(1000, 1000), ValueError),
    "an image of 2^186 pixels": (image(*[2**31 - 1] * 6), ValueError),
    "an image of 5000 axes": (image(*[1] * 5000), ValueError),
    "an image that is a text": (
        Value(StructType([("value", STRING)], "epics:nt/NTNDArray:1.0")),
        AttributeError,
    ),
}


def test_a_value_that_is_not_what_its_type_says_is_an_error_and_raw_it_can_be_had() -> None:
    pvs = {f"odd:{number}": SharedPV(value) for number, (value, _) in enumerate(ODD.values())}
    with served(**pvs, good=number(1.5)) as there, Context("pva", conf=there.conf, useenv=False) as ctxt:
        for name, (what, (_, error)) in zip(pvs, ODD.items(), strict=True):
            (item,) = ctxt.get([name], timeout=PATIENCE_S, throw=False)
            if error is None:
                assert str(item), what
                continue
            assert type(item) is error, what
            assert len(str(item)) < 400, what
            assert ctxt.get("good") == 1.5
        with Context("pva", conf=there.conf, useenv=False, nt=False) as raw:
            for name in pvs:
                assert str(raw.get(name, timeout=PATIENCE_S))
