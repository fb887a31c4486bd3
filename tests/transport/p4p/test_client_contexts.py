"""The blocking client with p4p's API: how a context begins and ends, its raw operations, and TLS."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import pickle
import queue
import threading
import weakref

import pytest

from appliance.certmon.endpoints import open_server
from appliance.certs.status import CertState
from appliance.p4p import nt
from appliance.p4p.client import _provider, raw
from appliance.p4p.client.thread import Cancelled, Context, Disconnected, Finished, RemoteError
from appliance.p4p.server import Server as P4PServer
from appliance.p4p.server.thread import SharedPV as ServedPV
from tests.helpers.live import HOST, keychain_file, number, server_config
from tests.helpers.native_client import PATIENCE_S
from tests.helpers.p4p_served import collect, until
from tests.helpers.pki import site as site_of_trust
from tests.helpers.status_service import StatusService

S = site_of_trust()


# -- the context ---------------------------------------------------------------------------------------


def test_close_wakes_who_waits_and_later_use_says_that_it_is_closed(site):
    ctxt = Context("pva", conf=site.conf, useenv=False)
    assert ctxt.conf()["EPICS_PVA_BROADCAST_PORT"] == site.conf["EPICS_PVA_BROADCAST_PORT"] or HOST in str(
        ctxt.conf()
    )
    began, errors = threading.Event(), []

    def wait() -> None:
        began.set()
        try:
            ctxt.get("nowhere", timeout=None)
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    began.wait(PATIENCE_S)
    until(lambda: any(ctxt._ctxt.native._links.channels))
    ctxt.close()
    thread.join(PATIENCE_S)
    assert [type(error) for error in errors] == [Cancelled]
    for use in (lambda: ctxt.get("a"), lambda: ctxt.put("a", 1), lambda: ctxt.monitor("a", print)):
        with pytest.raises(RuntimeError, match="Context closed"):
            use()
    assert ctxt.conf() == {}
    ctxt.close()


def test_a_forgotten_context_closes_its_connections(site):
    ctxt = Context("pva", conf=site.conf, useenv=False)
    ctxt.get("a", timeout=PATIENCE_S)
    native, gone = ctxt._ctxt.native, weakref.ref(ctxt)
    del ctxt
    gc.collect()
    assert gone() is None
    until(lambda: native._end.closed)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"provider": 5}, TypeError),
        ({"conf": {"EPICS_PVA_SERVER_PORT": 5075}}, AttributeError),
        ({"conf": [1]}, AttributeError),
        ({"workers": 3}, TypeError),
        ({"conf": {"EPICS_PVA_TLS_KEYCHAIN": "/there/is/no/such/file.p12"}}, RuntimeError),
        ({"conf": {"EPICS_PVA_TLS_OPTIONS": "tls_required"}}, RuntimeError),
    ],
)
def test_a_context_that_cannot_be_made_says_why(arguments, error):
    with pytest.raises(error):
        Context(**{"useenv": False, **arguments})


def test_a_setting_that_cannot_be_used_is_a_warning_as_in_p4p(caplog):
    conf = {"EPICS_PVA_SERVER_PORT": "abc", "EPICS_PVA_ADDR_LIST": "a..b", "EPICS_PVA_AUTO_ADDR_LIST": "NO"}
    with (
        caplog.at_level(logging.WARNING, logger="appliance.p4p.client._provider"),
        Context("pva", conf=conf, useenv=False) as ctxt,
    ):
        assert ctxt.conf()["EPICS_PVA_SERVER_PORT"] == "5075"
        assert isinstance(ctxt.get("a", timeout=0.05, throw=False), TimeoutError)
    assert "'abc' ignored" in caplog.text


def test_the_environment_is_read_unless_it_is_switched_off_and_conf_goes_before_it(site, monkeypatch):
    for name, value in site.conf.items():
        monkeypatch.setenv(name, value)
    with Context("pva") as ctxt:
        assert ctxt.get("a", timeout=PATIENCE_S) == 1.5
    monkeypatch.setenv("EPICS_PVA_BROADCAST_PORT", "9")
    with Context("pva", conf=site.conf) as ctxt:
        assert ctxt.get("a", timeout=PATIENCE_S) == 1.5
    with Context("pva", useenv=False, conf={"EPICS_PVA_AUTO_ADDR_LIST": "NO"}) as ctxt:
        assert "EPICS_PVA_ADDR_LIST" not in ctxt.conf()


def test_the_static_methods_are_there():
    assert Context.providers() == ["pva"]
    assert Context.makeRequest("").tolist() == [("field", [])]
    request = Context.makeRequest("field(a.b)record[queueSize=10]")
    assert request.record._options.queueSize == "10"
    with pytest.raises(RuntimeError):
        Context.makeRequest("fie(")
    with pytest.raises(TypeError):
        Context.makeRequest(5)


# -- raw -----------------------------------------------------------------------------------------------


@pytest.fixture
def by_callback(site):
    with raw.Context("pva", conf=site.conf) as client:
        yield client


def test_raw_operations_report_by_callback(by_callback):
    came: queue.Queue = queue.Queue()
    held = [
        by_callback.get("a", came.put),
        by_callback.put("a", came.put, builder=1.5),
        by_callback.rpc("adder", came.put, None),
        by_callback.put("refuses", came.put, builder={"value": 2}),
    ]
    answers = [came.get(timeout=PATIENCE_S) for _ in held]
    assert 1.5 in answers
    assert None in answers
    assert -1.0 in answers
    assert [type(answer) for answer in answers if isinstance(answer, Exception)] == [RemoteError]
    assert held[0].name == "a"


@pytest.mark.parametrize("how", ["close", "forget", "cycle"])
def test_a_raw_operation_that_is_given_up_is_cancelled_at_once(by_callback, how):
    came = []

    def handler(answer: object) -> None:
        came.append(answer)

    operation = by_callback.get("nowhere", handler)
    gone = weakref.ref(operation)
    if how == "close":
        operation.close()
        operation.close()
    else:
        if how == "cycle":
            handler.held = operation
        del operation, handler
        gc.collect()
        assert gone() is None
    assert [type(answer) for answer in came] == [Cancelled]


def test_a_raw_subscription_is_read_when_its_handler_was_called(site, by_callback):
    pv = number(1.0)
    site.do(site.server.add_pv, "r1", pv)
    told = threading.Semaphore(0)
    subscription = by_callback.monitor("r1", told.release)
    assert told.acquire(timeout=PATIENCE_S)
    assert subscription.pop() == 1.0
    assert subscription.pop() is None
    site.do(pv.post, 2.0)
    assert told.acquire(timeout=PATIENCE_S)
    assert (subscription.pop(), subscription.pop()) == (2.0, None)
    site.do(pv.close)
    assert told.acquire(timeout=PATIENCE_S)
    assert isinstance(subscription.pop(), Disconnected)
    assert not subscription.complete()
    subscription.close()
    assert subscription.pop() is None


def test_a_raw_handler_cannot_wait_for_pvaccess(site, by_callback):
    came: queue.Queue = queue.Queue()
    with Context("pva", conf=site.conf, useenv=False) as ctxt:

        def handler(answer: object) -> None:
            try:
                ctxt.get("a")
            except RuntimeError as error:
                came.put(str(error))

        operation = by_callback.get("a", handler)
        assert "work queue" in came.get(timeout=PATIENCE_S)
        assert operation.name == "a"


def test_the_end_of_the_program_closes_all_contexts(site):
    ctxt = Context("pva", conf=site.conf, useenv=False)
    ctxt.get("a", timeout=PATIENCE_S)
    raw._cleanup_contexts()
    with pytest.raises(RuntimeError, match="Context closed"):
        ctxt.get("a")


# -- TLS -----------------------------------------------------------------------------------------------


async def test_a_program_over_tls_hears_of_a_revoked_server_as_disconnected(tmp_path, monkeypatch):
    monkeypatch.setattr("appliance.certmon.gate.PATIENCE_S", 30)
    monkeypatch.setattr("appliance.certmon.tls_manager.PATIENCE_S", 30)
    server_keychain = S.ca.keychain("softioc", "server", status=True)
    client_keychain = S.ca.keychain("operator", "client", status=True)
    files = [
        keychain_file(tmp_path, name, kept)
        for name, kept in (("server", server_keychain), ("client", client_keychain))
    ]
    pv = number(1.5)
    came: queue.Queue = queue.Queue()

    async with StatusService(S.ca) as cms:
        for each in (server_keychain, client_keychain):
            cms.set(each, CertState.VALID)
        async with open_server(
            server_config(files[0]),
            prepare=lambda server: server.add_pv("pv", pv),
            status_client=cms.client_config(),
        ) as server:
            conf = {
                "EPICS_PVA_ADDR_LIST": f"{HOST}:{server.udp_port} {HOST}:{cms.udp_port}",
                "EPICS_PVA_AUTO_ADDR_LIST": "NO",
                "EPICS_PVA_TLS_KEYCHAIN": str(files[1]),
                "EPICS_PVA_TLS_OPTIONS": "tls_required",
            }

            def use() -> Context:
                ctxt = Context("pva", conf=conf, useenv=False)
                assert ctxt.get("pv", timeout=PATIENCE_S) == 1.5
                ctxt.put("pv", 2.5)
                return ctxt

            ctxt = await asyncio.to_thread(use)
            subscription = ctxt.monitor("pv", came.put, notify_disconnect=True)
            first = [await asyncio.to_thread(came.get, timeout=PATIENCE_S) for _ in range(2)]
            assert type(first[0]) is Disconnected
            assert first[1] == 2.5
            cms.set(server_keychain, CertState.REVOKED)
            last = await asyncio.to_thread(came.get, timeout=PATIENCE_S)
            assert isinstance(last, Disconnected)
            assert not isinstance(last, Finished)
            with pytest.raises(TimeoutError, match="pv"):
                await asyncio.to_thread(ctxt.get, "pv", timeout=0.5)
            subscription.close()
            await asyncio.to_thread(ctxt.close)


def test_what_belongs_to_a_process_is_not_pickled_and_no_copy_of_it_can_end_it(site, ctxt):
    updates, subscription = collect(ctxt, "a")
    assert updates.get(timeout=PATIENCE_S) == 1.5
    served_pv = ServedPV(nt=nt.NTScalar("d"), initial=1.0)
    kept = []
    served_pv._handler.put = lambda pv, op: kept.append(op._op)
    with P4PServer(providers=[{"own": served_pv}], isolate=True) as server:
        with Context("pva", conf=server.conf(), useenv=False) as other:
            asked = other.get("own", timeout=PATIENCE_S)
            assert asked == 1.0
            putting = threading.Thread(target=lambda: other.put("own", 2.0, timeout=None))
            putting.start()
            until(lambda: kept)
            for thing in (ctxt, subscription, served_pv, server, kept[0]):
                for attempt in (pickle.dumps, copy.deepcopy, *([copy.copy] if thing is not ctxt else [])):
                    with pytest.raises(
                        TypeError, match="cannot be pickled or copied: it belongs to this process"
                    ):
                        attempt(thing)
            gc.collect()
            kept[0].done()
            putting.join(PATIENCE_S)
            assert not putting.is_alive()
    # A flat copy of a Context is the same client, as in p4p.
    twin = copy.copy(ctxt)
    assert twin.get("a") == 1.5
    del twin
    gc.collect()
    site.do(site.server._static.pvs["a"].post, 7.5)
    assert updates.get(timeout=PATIENCE_S) == 7.5
    site.do(site.server._static.pvs["a"].post, 1.5)
    subscription.close()


def test_a_client_whose_start_is_broken_off_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    closed = threading.Event()

    class Native(_provider.NativeContext):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)
            made.append(self)

        async def close(self) -> None:
            await super().close()
            closed.set()

    class Broken(_provider.Engine):
        def run(self, work, timeout=None):
            super().run(work, timeout)
            raise KeyboardInterrupt

    home = _provider.engine()
    monkeypatch.setattr(_provider, "NativeContext", Native)
    monkeypatch.setattr(home, "__class__", Broken)
    with pytest.raises(KeyboardInterrupt):
        Context("pva", conf={"EPICS_PVA_ADDR_LIST": HOST, "EPICS_PVA_AUTO_ADDR_LIST": "NO"}, useenv=False)
    monkeypatch.undo()
    assert len(made) == 1
    assert closed.wait(PATIENCE_S)
