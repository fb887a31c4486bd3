"""A generic client, p4p's, tries every operation on every PV: each gets an answer, and the service goes on."""

import contextlib
import threading

import pytest

pytest.importorskip("p4p")
from p4p import Type, Value
from p4p.client.thread import Context, Disconnected, RemoteError

from tests.helpers.cms import Process

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with Process(tmp_path_factory.mktemp("cms"), "--certs-dont-require-approval") as process:
        yield process.ready()


@pytest.fixture(scope="module")
def generic(service):
    conf = {
        "EPICS_PVA_NAME_SERVERS": f"127.0.0.1:{service.tcp_port}",
        "EPICS_PVA_AUTO_ADDR_LIST": "NO",
        "EPICS_PVA_ADDR_LIST": "",
    }
    with Context("pva", conf=conf, useenv=False, nt=False) as context:
        yield context


def names(issuer):
    return [
        *(f"CERT:{what}{end}" for what in ("ROOT", "ISSUER", "CREATE", "LIST") for end in ("", f":{issuer}")),
        f"CERT:STATUS:{issuer}:1",
        f"CERT:STATUS:{issuer}:{1:020d}",
        "CERT:HEALTH",
        "CERT:METRICS",
    ]


def monitor(generic, name):
    """The first thing that a subscription delivers: a value, or the error."""
    seen = []
    arrived = threading.Event()

    def update(value):
        seen.append(value)
        if not isinstance(value, Disconnected):
            arrived.set()

    subscription = generic.monitor(name, update, notify_disconnect=True)
    try:
        assert arrived.wait(30), (name, seen)
    finally:
        subscription.close()
    return seen[-1]


ARGUMENTS = [
    Value(Type([("a", "i")]), {"a": 1}),
    Value(Type([("query", "s")]), {"query": "x"}),
    Value(Type([("query", ("S", None, []))]), {}),
    Value(Type([("query", ("S", None, [("pub_key", "i")]))]), {"query": {"pub_key": 5}}),
    Value(
        Type([("query", ("S", None, [("pub_key", "s"), ("usage", "d")]))]),
        {"query": {"pub_key": "x", "usage": 0.5}},
    ),
    Value(
        Type([("query", ("S", None, [("pub_key", "s"), ("usage", "H"), ("name", "as")]))]),
        {"query": {"pub_key": "x", "usage": 1, "name": ["a"]}},
    ),
    Value(
        Type([("query", ("S", None, [("pub_key", "s"), ("usage", "H"), ("verifier", "s"), ("type", "s")]))]),
        {"query": {"pub_key": "x", "usage": 1, "type": "jwt", "verifier": "token"}},
    ),
]


def test_every_operation_on_every_pv_is_answered(service, generic):
    readable = 0
    for name in names(service.issuer):
        for operation in (
            lambda name: generic.get(name, timeout=30),
            lambda name: generic.get(name, request="field(nonsense)", timeout=30),
            lambda name: generic.put(name, {"state": "REVOKED"}, timeout=30),
            lambda name: generic.put(name, {"value": 5}, timeout=30),
            *(lambda name, a=a: generic.rpc(name, a, timeout=30) for a in ARGUMENTS),
        ):
            # Answered with an error, or refused by p4p itself.
            with contextlib.suppress(RemoteError, KeyError, TypeError, ValueError):
                readable += operation(name) is not None
        monitor(generic, name)
    assert readable >= 8
    assert generic.get("CERT:HEALTH", timeout=30)["value.index"] == 1


def test_what_the_readable_pvs_hold(service, generic):
    root = generic.get("CERT:ROOT", timeout=30)
    assert root["issuer"] == service.issuer
    assert root["cert"].count("BEGIN CERTIFICATE") == 1
    assert (
        generic.get(f"CERT:ISSUER:{service.issuer}", timeout=30).todict()
        == generic.get("CERT:ISSUER", timeout=30).todict()
    )
    health = generic.get("CERT:HEALTH", timeout=30)
    assert health.getID() == "epics:nt/NTEnum:1.0"
    assert health["value.choices"] == ["Not OK", "OK"]
    assert health["db_ok"]
    assert health["ca_valid"]
    assert health["alarm.severity"] == 0
    metrics = generic.get("CERT:METRICS", timeout=30)
    assert metrics.getID() == "epics:nt/NTScalar:1.0"
    assert metrics["value"] == 2  # the service's own and the administrator's


@pytest.mark.parametrize("argument", ARGUMENTS, ids=range(len(ARGUMENTS)))
def test_a_malformed_request_gets_a_sentence(service, generic, argument):
    with pytest.raises(RemoteError) as refusal:
        generic.rpc("CERT:CREATE", argument, timeout=30)
    assert len(str(refusal.value)) > 15
    assert "internal error" not in str(refusal.value)


def test_the_log_has_no_defect(service, generic):
    generic.get("CERT:HEALTH", timeout=30)
    status, _out, log = service.stop()
    assert status == 0
    assert "Traceback" not in log
    assert "internal error" not in log
