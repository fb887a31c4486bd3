"""A server of the p4p API over TLS: the same settings as our tools, and handlers that see who the client is."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.certs.status import CertState
from appliance.errors import ApplianceError
from appliance.p4p.client.thread import Context, Disconnected, Finished
from appliance.p4p.nt import NTScalar
from appliance.p4p.server import Server
from appliance.p4p.server.thread import SharedPV
from appliance.threads import engine
from tests.helpers.live import keychain_file
from tests.helpers.native_client import PATIENCE_S, NativeClient, taken
from tests.helpers.pki import site, write_keychain
from tests.helpers.status_service import StatusService

S = site()
QUIET = {
    "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1",
    "EPICS_PVAS_AUTO_BEACON_ADDR_LIST": "NO",
    "EPICS_PVAS_SERVER_PORT": "0",
    "EPICS_PVAS_BROADCAST_PORT": "0",
    "EPICS_PVAS_TLS_PORT": "0",
    "EPICS_PVA_NO_STATUS_CACHE": "YES",
}


class Asked(SharedPV):
    """Notes who puts, and keeps the request if the value is negative."""

    def __init__(self) -> None:
        super().__init__(nt=NTScalar("d"), initial=1.0)
        self.seen: list[Any] = []
        self.kept: list[Any] = []
        self.there, self.cancelled, self.gone = threading.Event(), threading.Event(), threading.Event()
        self._handler.put = self.asked
        self._handler.onLastDisconnect = lambda pv: self.gone.set()

    def asked(self, pv: SharedPV, op: Any) -> None:
        self.seen.append((op.account(), op.credentials()))
        if op.value() < 0:
            op.onCancel(self.cancelled.set)
            self.kept.append(op)
            self.there.set()
        else:
            op.done()


@pytest.fixture(autouse=True)
def steady(monkeypatch: Any) -> None:
    """On a busy machine the first status may take longer than the patience for it: that is not what is tested."""
    for name in ("gate.PATIENCE_S", "tls_manager.PATIENCE_S", "gate.SERVER_PATIENCE_S"):
        monkeypatch.setattr(f"appliance.certmon.{name}", 30)


@pytest.fixture
def status() -> Iterator[StatusService]:
    service = StatusService(S.ca)
    engine().run(service.start())
    try:
        yield service
    finally:
        engine().run(service.stop())


def keychain(folder: Path, name: str, *, status: bool = False) -> tuple[Any, str]:
    made = S.ca.keychain(name, "server" if name == "softioc" else "client", status=status)
    return made, str(keychain_file(folder, name, made))


def client_settings(server: Server, file: str, *ports: int) -> dict[str, str]:
    settings = server.conf()
    places = [int(settings["EPICS_PVA_BROADCAST_PORT"]), *ports]
    return {
        **settings,
        "EPICS_PVA_ADDR_LIST": " ".join(f"127.0.0.1:{port}" for port in places),
        "EPICS_PVA_TLS_KEYCHAIN": file,
        "EPICS_PVA_NO_STATUS_CACHE": "YES",
    }


def until(condition: Callable[[], Any]) -> None:
    """Wait for what tells nobody."""
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it did not come true")


@pytest.mark.parametrize("how", ["conf", "environment", "server's own variable"])
def test_the_keychain_of_the_settings_is_used_and_handlers_see_the_certificate(
    how: str, tmp_path: Path, monkeypatch: Any
) -> None:
    name = "EPICS_PVAS_TLS_KEYCHAIN" if how != "environment" else "EPICS_PVA_TLS_KEYCHAIN"
    settings = {**QUIET, name: keychain(tmp_path, "softioc")[1]}
    pv = Asked()
    if how == "conf":
        server = Server(providers=[{"pv": pv}], useenv=False, conf=settings)
    else:
        for variable, value in settings.items():
            monkeypatch.setenv(variable, value)
        server = Server(providers=[{"pv": pv}])
    with server:
        with NativeClient(client_settings(server, keychain(tmp_path, "operator")[1])) as client:
            client.put("pv", 2)
            client.get("pv")
            peer = client.context.channel("pv").peer
            assert peer is not None
            assert (peer.is_tls, peer.account) == (True, "softioc")
        # Without a certificate the client is as with p4p: what it claims to be, and that is told.
        with NativeClient(server.conf(), EPICS_PVA_TLS_KEYCHAIN="") as client:
            client.put("pv", 3)
    (account, proved), (_, claimed) = pv.seen
    assert (account, proved.method, proved.is_tls) == ("operator", "x509", True)
    assert proved.authority
    assert (claimed.method, claimed.is_tls) == ("ca", False)


def test_requests_of_a_client_end_when_its_certificate_is_revoked(
    tmp_path: Path, status: StatusService
) -> None:
    serving, server_file = keychain(tmp_path, "softioc", status=True)
    asking, client_file = keychain(tmp_path, "operator", status=True)
    for one in (serving, asking):
        status.set(one, CertState.VALID)
    pv = Asked()
    conf = {
        **QUIET,
        "EPICS_PVAS_TLS_KEYCHAIN": server_file,
        "EPICS_PVA_ADDR_LIST": f"127.0.0.1:{status.udp_port}",
        "EPICS_PVA_AUTO_ADDR_LIST": "NO",
    }
    with (
        Server(providers=[{"pv": pv}], useenv=False, conf=conf) as server,
        NativeClient(
            client_settings(server, client_file, status.udp_port), EPICS_PVA_TLS_OPTIONS=""
        ) as client,
    ):
        updates = client.watch("pv", notify=True)
        while not hasattr(taken(updates), "store"):
            pass
        task = client.begin(client.context.put("pv", -1, timeout=PATIENCE_S))
        assert pv.there.wait(PATIENCE_S)
        assert pv.seen[0][1].method == "x509"
        engine().call(status.set, asking, CertState.REVOKED)
        assert pv.cancelled.wait(PATIENCE_S)
        assert pv.gone.wait(PATIENCE_S)
        pv.kept.pop().done()

        async def wait() -> None:
            await task

        with pytest.raises(ApplianceError):
            engine().run(wait())


@pytest.mark.parametrize("asked", ["tls_required", ""])
@pytest.mark.parametrize("whose", ["softioc", "operator"])
def test_a_subscription_survives_a_revoked_certificate_as_soon_as_there_is_a_new_one(
    whose: str, asked: str, tmp_path: Path, status: StatusService, monkeypatch: Any
) -> None:
    monkeypatch.setattr("appliance.certmon.gate.AVOID_S", (0.5,))
    made = {name: keychain(tmp_path, name, status=True) for name in ("softioc", "operator")}
    for one, _ in made.values():
        status.set(one, CertState.VALID)
    site_of_status = {"EPICS_PVA_ADDR_LIST": f"127.0.0.1:{status.udp_port}", "EPICS_PVA_AUTO_ADDR_LIST": "NO"}
    required = {"EPICS_PVAS_TLS_OPTIONS": "tls_required"}  # the server has no plain TCP
    conf = {**QUIET, **site_of_status, **required, "EPICS_PVAS_TLS_KEYCHAIN": made["softioc"][1]}
    pv = Asked()
    came: queue.Queue[Any] = queue.Queue()
    with (
        Server(providers=[{"pv": pv}], useenv=False, conf=conf) as server,
        Context(
            "pva",
            conf={
                **client_settings(server, made["operator"][1], status.udp_port),
                "EPICS_PVA_TLS_OPTIONS": asked,
            },
            useenv=False,
        ) as ctxt,
    ):
        subscription = ctxt.monitor("pv", came.put, notify_disconnect=True)
        assert isinstance(taken(came), Disconnected)
        assert taken(came) == 1.0
        pv.post(2.0)
        assert taken(came) == 2.0
        engine().call(status.set, made[whose][0], CertState.REVOKED)
        gone = taken(came)
        assert isinstance(gone, Disconnected)
        assert not isinstance(gone, Finished)
        pv.post(3.0)
        for ask in (lambda: ctxt.get("pv", timeout=0.3), lambda: ctxt.put("pv", 1, timeout=0.3)):
            with pytest.raises(TimeoutError):
                ask()
        whys = [str(item) for item in came.queue if isinstance(item, Disconnected)]
        assert len(whys) == len(came.queue), "no value comes without TLS"
        assert len(set(whys)) == len(whys), "each reason is told once"
        renewed, _ = keychain(tmp_path, whose, status=True)  # the file's place is the same
        engine().call(status.set, renewed, CertState.VALID)
        while (item := taken(came)) != 3.0:
            assert isinstance(item, Disconnected)
        assert ctxt.get("pv", timeout=PATIENCE_S) == 3.0
        assert [peer.credentials.method for peer in server._S._native.peers.values()] == ["x509"]
        subscription.close()


def test_without_tls_required_a_subscription_goes_on_over_plain_tcp_and_that_is_said(
    tmp_path: Path, status: StatusService, caplog: Any
) -> None:
    serving, server_file = keychain(tmp_path, "softioc", status=True)
    asking, client_file = keychain(tmp_path, "operator", status=True)
    for one in (serving, asking):
        status.set(one, CertState.VALID)
    conf = {
        **QUIET,
        "EPICS_PVAS_TLS_KEYCHAIN": server_file,
        "EPICS_PVA_ADDR_LIST": f"127.0.0.1:{status.udp_port}",
        "EPICS_PVA_AUTO_ADDR_LIST": "NO",
    }
    pv = Asked()
    came: queue.Queue[Any] = queue.Queue()
    with (
        Server(providers=[{"pv": pv}], useenv=False, conf=conf) as server,
        Context("pva", conf=client_settings(server, client_file, status.udp_port), useenv=False) as ctxt,
    ):
        subscription = ctxt.monitor("pv", came.put, notify_disconnect=True)
        while taken(came) != 1.0:
            pass
        until(lambda: ctxt._ctxt.native.channel("pv").peer.is_tls)
        engine().call(status.set, asking, CertState.REVOKED)
        pv.post(2.0)
        while taken(came) != 2.0:
            pass
        until(lambda: (peer := ctxt._ctxt.native.channel("pv").peer) is not None and not peer.is_tls)
        subscription.close()
    assert any(
        record.levelno >= logging.WARNING and "is REVOKED: tcp" in record.getMessage()
        for record in caplog.records
    )


def test_with_tls_required_nothing_is_served_without_it(tmp_path: Path) -> None:
    conf = {
        **QUIET,
        "EPICS_PVAS_TLS_KEYCHAIN": keychain(tmp_path, "softioc")[1],
        "EPICS_PVAS_TLS_OPTIONS": "tls_required",
    }
    with Server(providers=[{"pv": Asked()}], useenv=False, conf=conf) as server:
        native = server._S._native
        assert native is not None
        assert (native.tcp_port, native.tls_port > 0) == (0, True)
        assert server.conf()["EPICS_PVAS_TLS_PORT"] == str(native.tls_port)
        assert server.conf()["EPICS_PVAS_TLS_OPTIONS"] == "tls_required"
        with NativeClient(client_settings(server, keychain(tmp_path, "operator")[1])) as client:
            assert client.get("pv")["value"] == 1.0


@pytest.mark.parametrize(
    ("said", "tcp"),
    [
        ({"EPICS_PVA_TLS_OPTIONS": "client_cert=require"}, False),
        ({"EPICS_PVA_TLS_OPTIONS": "tls_required=no"}, True),  # in so many words
        ({"EPICS_PVAS_TLS_OPTIONS": "client_cert=require"}, True),  # the same variable
    ],
)
def test_an_option_of_conf_takes_away_no_other_option_of_the_environment(
    said: dict[str, str], tcp: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("EPICS_PVAS_TLS_KEYCHAIN", keychain(tmp_path, "softioc")[1])
    monkeypatch.setenv("EPICS_PVAS_TLS_OPTIONS", "tls_required")
    with Server(providers=[], conf=said) as server:
        native = server._S._native
        assert native is not None
        assert (native.tcp_port > 0, native.tls_port > 0) == (tcp, True)
        options = native.config.tls_options
        assert (options.client_cert == "require") is any("client_cert" in text for text in said.values())


def test_a_keychain_that_cannot_be_used_stops_the_server_with_a_sentence(tmp_path: Path) -> None:
    bad = tmp_path / "bad.p12"
    bad.write_bytes(b"no keychain")
    bad.chmod(0o600)
    for file in (bad, tmp_path / "missing.p12"):
        with pytest.raises(RuntimeError, match=file.name):
            Server(providers=[], useenv=False, conf={**QUIET, "EPICS_PVAS_TLS_KEYCHAIN": str(file)})


def test_no_password_is_in_what_a_server_tells(tmp_path: Path, caplog: Any) -> None:
    made = S.ca.keychain("softioc", "server")
    file = str(write_keychain(tmp_path / "server.p12", made, b"secretive"))
    conf = {**QUIET, "EPICS_PVAS_TLS_KEYCHAIN": f"{file};secretive"}
    with caplog.at_level(logging.DEBUG), Server(providers=[], useenv=False, conf=conf) as server:
        assert server.conf()["EPICS_PVAS_TLS_KEYCHAIN"] == file
        assert "secretive" not in server.tostr(5) + repr(server.conf()) + repr(vars(server._S))
    assert "secretive" not in caplog.text


def test_isolate_is_plain_tcp_on_this_host_whatever_the_environment_says(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("EPICS_PVAS_TLS_KEYCHAIN", keychain(tmp_path, "softioc")[1])
    with Server(providers=[], isolate=True) as server:
        native = server._S._native
        assert native is not None
        assert (native.tls, native.tls_port) == (None, 0)
