"""The groups of a client's account: asked for beside the event loop, and nobody has one before it is known."""

from __future__ import annotations

import asyncio
import getpass
import threading

import pytest

from appliance.errors import AccessDeniedError
from appliance.pva.credentials import Credentials
from appliance.server import roles as roles_module
from appliance.server.access import ALL_RIGHTS, NO_RIGHTS, Rights
from appliance.server.admission import AdmissionTimings
from appliance.server.roles import Roles
from tests.helpers.live import until
from tests.helpers.ours import client_of, double, served
from tests.helpers.raw import RawClient

ME = getpass.getuser()


class Operators:
    """Only members of the group may do anything."""

    def rights(self, name: str, peer: Credentials) -> Rights:
        return ALL_RIGHTS if "operators" in peer.roles else NO_RIGHTS


class Directory:
    """A directory service that answers when it is told to."""

    def __init__(self, *groups: str) -> None:
        self.groups = frozenset(groups)
        self.asked: list[str] = []
        self.answers = threading.Event()

    def __call__(self, account: str) -> frozenset[str]:
        self.asked.append(account)
        assert self.answers.wait(30)
        return self.groups


async def test_a_directory_that_answers_late_stops_nobody_else() -> None:
    directory = Directory("operators")
    async with served({"pv": double(1.0)}, policy=Operators()) as server:
        server.entrance.roles = Roles(directory)
        async with client_of(server) as ctx:
            first = asyncio.ensure_future(ctx.get("pv"))
            await until(lambda: directory.asked)
            # An anonymous client has no account to look up: it is let in at once, while the other waits.
            await (await RawClient.connect(server.tcp_port)).close()
            (peer,) = [peer for peer in server.peers.values() if peer.credentials.account == ME]
            assert not peer.validated
            assert not peer.credentials.roles
            directory.answers.set()
            assert (await first)["value"] == 1.0
            assert peer.credentials.roles == {"operators"}
    assert directory.asked == [ME]


async def test_a_directory_that_takes_too_long_gives_no_role_until_it_answers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    directory = Directory("operators")
    timings = AdmissionTimings(roles_s=0.05)
    async with served({"pv": double(1.0)}, policy=Operators(), timings=timings) as server:
        server.entrance.roles = Roles(directory)
        async with client_of(server) as ctx:
            with pytest.raises(AccessDeniedError):
                await ctx.get("pv")
            assert "has no roles until" in caplog.text
            directory.answers.set()
            await until(lambda: all(peer.credentials.roles for peer in server.peers.values()))
            assert (await ctx.get("pv"))["value"] == 1.0, "the channel that is open has the rights now"


async def test_a_directory_that_fails_gives_no_role(caplog: pytest.LogCaptureFixture) -> None:
    def broken(account: str) -> frozenset[str]:
        raise OSError("no such server")

    async with served({"pv": double(1.0)}, policy=Operators()) as server:
        server.entrance.roles = Roles(broken)
        async with client_of(server) as ctx:
            with pytest.raises(AccessDeniedError):
                await ctx.get("pv")
    assert "gets no roles" in caplog.text


async def test_a_client_that_leaves_meanwhile_is_forgotten() -> None:
    directory = Directory("operators")
    async with served({"pv": double(1.0)}, policy=Operators()) as server:
        server.entrance.roles = Roles(directory)
        ctx = client_of(server)
        async with ctx:
            asyncio.ensure_future(ctx.get("pv")).add_done_callback(lambda future: future.exception())
            await until(lambda: directory.asked)
        await until(lambda: not server.peers)
        directory.answers.set()
        await until(lambda: server.entrance.roles.known(ME) is not None)
        assert not server.entrance.roles._pending


async def test_one_account_is_looked_up_once_for_all_who_wait_and_remembered() -> None:
    directory = Directory("a", "b")
    roles = Roles(directory)
    told: list[frozenset[str]] = []
    loop = asyncio.get_running_loop()
    for _ in range(100):
        roles.ask("x", told.append, loop)
    assert roles.known("x") is None
    directory.answers.set()
    await until(lambda: len(told) == 100)
    assert set(told) == {frozenset({"a", "b"})}
    assert roles.known("x") == {"a", "b"}
    assert directory.asked == ["x"]


async def test_names_that_clients_make_up_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roles_module, "_MAX", 8)
    directory = Directory("a")
    roles = Roles(directory)
    told: list[frozenset[str]] = []
    loop = asyncio.get_running_loop()
    for number in range(20):
        roles.ask(f"x{number}", told.append, loop)
    assert told == [frozenset()] * 12, "those that are too many get no role, at once"
    assert sum(thread.name == "roles" for thread in threading.enumerate()) <= 4
    directory.answers.set()
    await until(lambda: len(told) == 20)
    for number in range(20, 40):
        roles.ask(f"x{number}", told.append, loop)
        await until(lambda: not roles._pending)
    assert len(roles._known) == 8
    await until(lambda: not any(thread.name == "roles" for thread in threading.enumerate()))


async def test_a_name_that_this_host_does_not_know_has_no_role() -> None:
    roles = Roles()
    told: list[frozenset[str]] = []
    for name in ("nobody-of-that-name", "0", "a\0b", "", "\udc80"):
        roles.ask(name, told.append, asyncio.get_running_loop())
    await until(lambda: len(told) == 5)
    assert set(told) == {frozenset()}
