"""Servers of the p4p API: where their PVs come from, their settings, their beginning and their end."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from appliance.errors import ApplianceError
from appliance.p4p.nt import NTScalar
from appliance.p4p.server import (
    DynamicProvider,
    Server,
    ServerOperation,
    StaticProvider,
    _cleanup_servers,
    _providers,
    clearProviders,
    installProvider,
    removeProvider,
)
from appliance.p4p.server._server import all_servers
from appliance.p4p.server.thread import SharedPV
from appliance.threads import engine
from tests.helpers.native_client import PATIENCE_S, NativeClient, taken
from tests.helpers.p4p_served import until

I = NTScalar("i")


def number(value: int) -> SharedPV:
    return SharedPV(nt=I, initial=value)


def ask(server: Server, *names: str) -> list[Any]:
    with NativeClient(server.conf()) as client:
        return [client.get(name)["value"] for name in names]


def nobody_has(server: Server, name: str) -> str:
    """Why a client that looked for a while does not find the name."""

    async def look() -> None:
        await client.context.get(name, timeout=0.3)

    with NativeClient(server.conf()) as client, pytest.raises(ApplianceError) as caught:
        engine().run(look())
    return str(caught.value)


# -- static ------------------------------------------------------------------------------------------


def test_the_list_of_a_provider_may_change_while_it_is_served() -> None:
    provider = StaticProvider("list")
    provider.add("a", number(1))
    with Server(providers=[provider], isolate=True) as server, NativeClient(server.conf()) as client:
        assert client.get("a")["value"] == 1
        pv = number(2)
        provider.add("b", pv)
        assert provider.keys() == ["a", "b"]
        updates = client.watch("b", notify=True)
        taken(updates)
        assert taken(updates)["value"] == 2
        provider.remove("b")
        assert not pv.isOpen()
        assert "Disconnected" in type(taken(updates)).__name__
        assert provider.keys() == ["a"]
        provider.remove("nobody")
        provider.close()
        assert provider.keys() == ["a"]
        provider.remove("a")
        provider.add("a", number(3))
        assert client.get("a")["value"] == 3


def test_a_provider_refuses_what_it_cannot_serve() -> None:
    provider = StaticProvider()
    provider.add("a", number(1))
    with pytest.raises(RuntimeError, match="already"):
        provider.add("a", number(2))
    for name, pv in ((b"b", number(1)), (5, number(1)), ("b", 5)):
        with pytest.raises(TypeError, match=r"must be a text|takes a SharedPV"):
            provider.add(name, pv)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be a text"):
        StaticProvider(5)  # type: ignore[arg-type]


def test_a_provider_of_lower_order_is_asked_first_and_names_decide_between_equals() -> None:
    first, second = StaticProvider("b"), StaticProvider("a")
    first.add("x", number(1))
    second.add("x", number(2))
    for providers, expected in (
        ([first, second], 2),
        ([(first, -1), second], 1),
        ([(first, 5), (second, 4), ({"x": number(3)}, 3)], 3),
    ):
        with Server(providers=providers, isolate=True) as server:
            assert ask(server, "x") == [expected]
    with pytest.raises(RuntimeError, match="two providers 'a'"):
        Server(providers=[second, second], isolate=True)
    with Server(providers=[second, (second, 1)], isolate=True) as server:
        assert ask(server, "x") == [2]


def test_a_server_lists_the_names_of_static_providers() -> None:
    with Server(
        providers=[{"b": number(1), "a": number(2)}, DynamicProvider("any", Boxes())], isolate=True
    ) as server:
        native = server._S._native
        assert native is not None
        assert sorted(native.names()) == ["a", "b"]


# -- names -------------------------------------------------------------------------------------------


def test_a_provider_can_be_named_and_is_not_kept_alive_by_its_name() -> None:
    provider = StaticProvider("named")
    provider.add("a", number(1))
    installProvider("named", provider)
    try:
        with Server(providers=["named"], isolate=True) as server:
            removeProvider("named")
            assert ask(server, "a") == [1]
        removeProvider("named")
        installProvider("named", provider)
        left = weakref.ref(provider)
        del provider, server
        gc.collect()
        assert left() is None
        with pytest.raises(ValueError, match="keep the provider"):
            Server(providers=["named"], isolate=True)
        clearProviders()
        with (
            pytest.warns(DeprecationWarning, match="should be a list"),
            pytest.raises(ValueError, match="named"),
        ):
            Server(providers="named", isolate=True)
    finally:
        clearProviders()


@pytest.mark.parametrize(
    ("providers", "error"),
    [
        ([5], ValueError),
        (["a b"], ValueError),
        ([""], ValueError),
        ([number(1)], ValueError),
        ({"a": number(1)}, ValueError),
        ([({"a": number(1)}, "first")], TypeError),
        ([({"a": number(1)}, 1, 2)], ValueError),
        ([b"name"], TypeError),
        ([{"a": 5}], TypeError),
        (None, TypeError),
    ],
)
def test_what_is_no_provider_is_refused(providers: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        Server(providers, isolate=True)


# -- on demand ---------------------------------------------------------------------------------------


class Boxes:
    def __init__(self) -> None:
        self.tests: list[str] = []
        self.makes: list[str] = []
        self.threads: set[str] = set()
        self.there = True

    def testChannel(self, name: str) -> Any:
        self.tests.append(name)
        self.threads.add(threading.current_thread().name)
        if name == "broken":
            raise LookupError("the handler's defect")
        if name == "later" and not self.there:
            return DynamicProvider.NotYet
        return name.startswith(("box:", "later"))

    def makeChannel(self, name: str, peer: str) -> Any:
        self.makes.append(f"{name} {peer.split(':')[0]}")
        if name == "box:broken":
            raise LookupError("the handler's other defect")
        made = name.startswith("box:") or (name == "later" and self.there)
        return {"box:none": None, "box:bad": 5}.get(name, number(len(name))) if made else None


def test_a_handler_that_would_end_the_program_harms_no_other_pv() -> None:
    class Leaves:
        def testChannel(self, name: str) -> bool:
            if name == "test":
                sys.exit("by testChannel")
            return True

        def makeChannel(self, name: str, peer: str) -> SharedPV:
            if name == "make":
                sys.exit("by makeChannel")
            return number(3)

    with Server(providers=[DynamicProvider("leaves", Leaves())], isolate=True) as server:
        assert "no server answered" in nobody_has(server, "test")
        with NativeClient(server.conf()) as client:
            # Who is refused goes on searching.
            asking = client.begin(client.context.get("make", timeout=None))
            until(lambda: "no PV 'make'" in client.context.channel("make").trouble)
            engine().call(asking.cancel)
            assert client.get("other")["value"] == 3


def test_pvs_are_made_as_they_are_asked_for_on_another_thread() -> None:
    boxes = Boxes()
    with Server(providers=[DynamicProvider("boxes", boxes), {"static": number(9)}], isolate=True) as server:
        assert ask(server, "box:1", "static", "box:22") == [5, 9, 6]
        assert "box:1 127.0.0.1" in boxes.makes
        # It is asked for every channel, also of a PV that another provider turns out to have.
        assert "static 127.0.0.1" in boxes.makes
    assert engine()._thread.name not in boxes.threads


def test_the_handler_may_take_its_time_and_use_pvaccess_meanwhile() -> None:
    class Copies:
        def testChannel(self, name: str) -> bool:
            return name.startswith("copy:") and client.get(name.removeprefix("copy:")) is not None

        def makeChannel(self, name: str, peer: str) -> Any:
            return (
                number(client.get(name.removeprefix("copy:"))["value"]) if name.startswith("copy:") else None
            )

    client: NativeClient
    with (
        Server(providers=[{"a": number(4)}], isolate=True) as origin,
        NativeClient(origin.conf()) as client,
        Server(providers=[DynamicProvider("copies", Copies())], isolate=True) as server,
    ):
        assert ask(server, "copy:a") == [4]


def test_no_is_remembered_and_not_yet_is_asked_again(monkeypatch: Any) -> None:
    boxes = Boxes()
    boxes.there = False
    provider = DynamicProvider("boxes", boxes)
    with Server(providers=[provider], isolate=True) as server:
        nobody_has(server, "nobody")
        nobody_has(server, "nobody")
        assert boxes.tests.count("nobody") == 1
        nobody_has(server, "later")
        boxes.there = True
        assert ask(server, "later") == [5]
        monkeypatch.setattr(_providers, "NO_TIME", -1.0)
        nobody_has(server, "other")
        nobody_has(server, "other")
        assert boxes.tests.count("other") >= 2


def test_a_defect_of_the_handler_is_logged_and_hides_no_other_pv(caplog: Any) -> None:
    boxes = Boxes()
    late = StaticProvider("z")
    late.add("box:broken", number(8))
    late.add("box:bad", number(7))
    late.add("box:none", number(6))
    with (
        Server(providers=[DynamicProvider("boxes", boxes), late], isolate=True) as server,
        caplog.at_level(logging.ERROR, logger="appliance.p4p"),
    ):
        assert ask(server, "box:broken", "box:bad", "box:none") == [8, 7, 6]
        nobody_has(server, "broken")
        late.remove("box:none")
        assert "there is no PV 'box:none'" in nobody_has(server, "box:none")
    for text in (
        "the handler's defect",
        "the handler's other defect",
        "must return a SharedPV or None, not int",
    ):
        assert text in caplog.text


def test_a_hostile_search_finds_bounds(monkeypatch: Any) -> None:
    monkeypatch.setattr(_providers, "MAX_TESTS", 2)
    monkeypatch.setattr(_providers, "MAX_ASKERS", 2)
    monkeypatch.setattr(_providers, "MAX_NOES", 2)
    asked, leave = threading.Event(), threading.Event()

    class Slow:
        def testChannel(self, name: str) -> bool:
            asked.set()
            leave.wait(PATIENCE_S)
            return False

    provider = DynamicProvider("slow", Slow())
    told: list[str] = []

    def search(name: str, asker: str) -> None:
        engine().call(provider._promise, name, asker, lambda: told.append(name))

    for asker in "abcdef":
        search("one", asker)
    for name in ("two", "three", "four"):
        search(name, "a")
    assert asked.wait(PATIENCE_S)
    assert engine().call(lambda: {name: len(askers) for name, askers in provider._tests.items()}) == {
        "one": 2,
        "two": 1,
    }
    leave.set()
    _providers.server_queue().sync(PATIENCE_S)
    assert engine().call(lambda: set(provider._noes)) == {"one", "two"}
    search("three", "a")
    _providers.server_queue().sync(PATIENCE_S)
    assert engine().call(lambda: set(provider._noes)) == {"three"}
    assert not told


def test_a_hostile_client_cannot_have_ever_more_pvs_made(monkeypatch: Any) -> None:
    monkeypatch.setattr(_providers, "MAX_MAKING", 1)
    making, leave = threading.Event(), threading.Event()

    class Slow:
        def testChannel(self, name: str) -> bool:
            return True

        def makeChannel(self, name: str, peer: str) -> Any:
            making.set()
            leave.wait(PATIENCE_S)
            return number(1)

    with (
        Server(providers=[DynamicProvider("slow", Slow())], isolate=True) as server,
        NativeClient(server.conf()) as client,
    ):
        first = client.begin(client.context.get("a", timeout=PATIENCE_S))
        assert making.wait(PATIENCE_S)
        source = server._S._providers
        refused: list[Any] = []
        from appliance.pva.credentials import Credentials

        later = engine().call(source.open, "b", Credentials())
        engine().call(later.then, refused.append)
        assert "1 PVs are being made; try again later" in str(refused[0])
        leave.set()

        async def wait() -> Any:
            return (await first)["value"]

        assert engine().run(wait()) == 1


def test_a_pv_that_is_made_for_a_client_that_has_gone_is_dropped() -> None:
    making, leave = threading.Event(), threading.Event()

    class Slow:
        def testChannel(self, name: str) -> bool:
            return True

        def makeChannel(self, name: str, peer: str) -> Any:
            making.set()
            leave.wait(PATIENCE_S)
            return pv

    pv = number(1)
    with Server(providers=[DynamicProvider("slow", Slow())], isolate=True) as server:
        with NativeClient(server.conf()) as client:
            client.begin(client.context.get("a", timeout=PATIENCE_S))
            assert making.wait(PATIENCE_S)
        leave.set()
        _providers.server_queue().sync(PATIENCE_S)
        assert ask(server, "a") == [1]


# -- settings ----------------------------------------------------------------------------------------

QUIET = {
    "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1",
    "EPICS_PVAS_AUTO_BEACON_ADDR_LIST": "NO",
    "EPICS_PVAS_SERVER_PORT": "0",
    "EPICS_PVAS_BROADCAST_PORT": "0",
}


def test_conf_leads_a_client_here_and_makes_a_server_like_this_one() -> None:
    with Server(providers=[{"a": number(1)}], conf=QUIET, useenv=False) as server:
        settings = server.conf()
        assert settings["EPICS_PVA_ADDR_LIST"] == "127.0.0.1"
        assert settings["EPICS_PVAS_SERVER_PORT"] == settings["EPICS_PVA_SERVER_PORT"] != "0"
        assert settings["EPICS_PVAS_BROADCAST_PORT"] == settings["EPICS_PVA_BROADCAST_PORT"] != "0"
        assert ask(server, "a") == [1]
    with Server(providers=[{"a": number(2)}], conf=settings, useenv=False) as server:
        assert server.conf() == settings
        assert ask(server, "a") == [2]


def test_conf_goes_before_the_environment_under_either_name(monkeypatch: Any) -> None:
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("EPICS_PVAS_BEACON_ADDR_LIST", "192.0.2.1")
    monkeypatch.setenv("EPICS_PVA_CONN_TMO", "20")
    with Server(providers=[]) as server:
        assert server.conf()["EPICS_PVAS_BEACON_ADDR_LIST"] == "192.0.2.1"
        assert server.conf()["EPICS_PVA_CONN_TMO"] == "20"
    with Server(providers=[], conf={"EPICS_PVA_ADDR_LIST": "192.0.2.2"}) as server:
        assert server.conf()["EPICS_PVAS_BEACON_ADDR_LIST"] == "192.0.2.2"
    with Server(providers=[], conf=QUIET, useenv=False) as server:
        assert server.conf()["EPICS_PVAS_BEACON_ADDR_LIST"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("conf", "error", "text"),
    [
        ({"EPICS_PVAS_INTF_ADDR_LIST": "invalid.host.name."}, RuntimeError, "invalid"),
        ({"EPICS_PVAS_INTF_ADDR_LIST": "192.0.2.77"}, RuntimeError, "192.0.2.77"),
        ({"EPICS_PVAS_INTF_ADDR_LIST": "[["}, RuntimeError, "invalid setting"),
        ({"EPICS_PVAS_SERVER_PORT": 0}, AttributeError, "must both be strings"),
        ({"EPICS_PVAS_TLS_KEYCHAIN": "/nonexistent.p12"}, RuntimeError, "nonexistent.p12"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(conf: Any, error: Any, text: str) -> None:
    before = set(all_servers)
    with pytest.raises(error, match=text):
        Server(providers=[], useenv=False, conf={**QUIET, **conf})
    assert set(all_servers) == before


def test_isolate_stands_alone() -> None:
    for more in ({"conf": {}}, {"useenv": False}):
        with pytest.raises(AssertionError, match="isolate"):
            Server(providers=[], isolate=True, **more)
    with pytest.raises(TypeError):
        Server(providers=[], isolate=True, nosuch=1)
    with pytest.raises(TypeError):
        Server()  # type: ignore[call-arg]


# -- beginning and end -------------------------------------------------------------------------------


def test_a_server_tells_of_itself() -> None:
    provider = StaticProvider("told")
    provider.add("a", number(1))
    server = Server(providers=[provider], isolate=True)
    with NativeClient(server.conf()) as client:
        client.get("a")
        assert len(server._S.guid) == 12
        text = server.tostr()
        assert "Source: told prio=0 StaticProvider" in text
        assert "    a\n" not in text
        assert "    a\n" in server.tostr(1)
        assert "Peer" in server.tostr(3)
        with pytest.raises(TypeError, match="integer"):
            server.tostr("much")  # type: ignore[arg-type]
    server.stop()
    server.stop()
    assert server.tostr() == "NULL"
    for attempt in (server.conf, lambda: server._S.guid, server._S.start):
        with pytest.raises(RuntimeError, match="stopped"):
            attempt()


def test_a_server_that_nobody_holds_ends() -> None:
    server = Server(providers=[{"a": number(1)}], isolate=True)
    native = server._S._native
    assert native is not None
    closed = native.wait_closed()
    del server
    gc.collect()
    engine().run(closed, PATIENCE_S)


def test_all_servers_end_with_the_program() -> None:
    server = Server(providers=[], isolate=True)
    assert server._S in all_servers
    _cleanup_servers()
    assert server.tostr() == "NULL"
    assert not list(all_servers)


def test_a_server_may_be_stopped_on_the_pvaccess_thread() -> None:
    server = Server(providers=[], isolate=True)
    native = server._S._native
    assert native is not None
    engine().call(server.stop)
    engine().run(native.wait_closed(), PATIENCE_S)
    with pytest.raises(RuntimeError, match="cannot wait"):
        engine().call(lambda: Server(providers=[], isolate=True))


def test_a_forked_child_leaves_the_server_to_its_parent() -> None:
    server = Server(providers=[{"a": number(1)}], isolate=True)
    child = os.fork()
    if not child:
        server.stop()
        os._exit(0)
    _, how = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(how) == 0
    assert ask(server, "a") == [1]
    server.stop()


def test_forever_ends_with_an_interrupt() -> None:
    program = (
        "import logging, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell may have had it ignored
        "from appliance.p4p.server import Server\n"
        "logging.basicConfig(level=logging.INFO, stream=sys.stdout, format='%(message)s')\n"
        "Server.forever(providers=[], isolate=True)\n"
        "print('ended')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert any("the server runs" in line for line in process.stdout)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert (out.splitlines()[-1], process.returncode) == ("ended", 0)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_server_operation_that_a_program_makes_is_a_type_error_and_no_more() -> None:
    with pytest.raises(TypeError):
        ServerOperation()  # type: ignore[call-arg]
    gc.collect()


def test_public_names() -> None:
    assert DynamicProvider.NotYet == b"nocache"
    public: list[Callable[..., Any]] = [
        ServerOperation.name,
        ServerOperation.peer,
        ServerOperation.pvRequest,
        ServerOperation.onCancel,
    ]
    assert all(method.__doc__ for method in public)
