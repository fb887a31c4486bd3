"""Nodes and their database are killed, frozen and cut off during load, in random order. Afterwards all that clients were told is true.

Small by default. ``make chaos`` sets SPVA_CHAOS_KILLS to what is promised, and SPVA_CHAOS_SEED to another order each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from appliance.certs.keychain import Keychain
from appliance.certs.ocsp import verify_response
from appliance.certs.profiles import generate_key
from appliance.client.context import Context
from appliance.client.end import Timings
from appliance.config.address import Endpoint
from appliance.config.pva import ClientConfig
from appliance.errors import ApplianceError, RemoteError
from appliance.tls.context import client_context
from tests.helpers.cms import ccr
from tests.helpers.history import INVOKED, OK, REFUSED, UNKNOWN, Event, Recorder, check
from tests.helpers.node_processes import Cluster
from tests.helpers.postgres import Server
from tests.helpers.tokens import raw

KILLS = int(os.environ.get("SPVA_CHAOS_KILLS", "8"))
SEED = os.environ.get("SPVA_CHAOS_SEED", "14")
CLIENTS = 8
TOKENS = 2
"""So many of the clients come with tokens, the others with a name and a proof of their key."""
MORE = 3
"""So many certificates are issued after each action before the next one: it happened during load, and the load went on."""
THINKING_S = 1.0
"""While a node starts each client waits for so long at most before its next request, so that the start has processor time."""
PATIENCE_S = 300.0
"""Something has stopped if so long passes without a certificate. While a node is frozen the others go on: it is frozen until they do."""
ANSWER_S = 60.0
"""A client gives up after so long on a connection that lives. If the answer comes in that moment, it has one and does not know it."""
SECRET = "0123456789abcdef0123456789abcdef"
IDP = "https://idp.example"
CONFIG = f"""
jwt:
  peer_per_minute: 0
  allow_plaintext_token: true
  issuers:
    - {{mode: shared_secret, issuer: '{IDP}', shared_secret: '${{file:%s}}', audience: [cms], algorithms: [HS256], per_minute: 0}}
"""
PASSING = re.compile(
    r"retry in (\d+) s|cannot be (reached|used|read|written|asked|known)|the service stops|the database is closed|try again"
)
"""What a node says that cannot do it at present. Everything else would be a defect."""
UNSURE = "it is not known whether this was done"


class Load:
    """Clients that ask until they know, and note all of it."""

    def __init__(
        self, cluster: Cluster, recorder: Recorder, contexts: dict[str, tuple[Context, Context]]
    ) -> None:
        self.cluster = cluster
        self.recorder = recorder
        self.contexts = contexts
        self.issuer = cluster.administrator.anchors[0]
        self.stopping = False
        self.is_calm = False
        self.issued: list[int] = []
        self.pv: dict[int, str] = {}
        self.revoked: set[int] = set()
        self.retries: Counter[str] = Counter()
        self._more = asyncio.Event()

    async def progress(self, count: int, *, within_s: float = PATIENCE_S, without: str = "") -> None:
        """Wait until so many more certificates are issued; without a node only those count that others were asked for from now on."""
        first = self.recorder.call()
        before = len(self.recorder.events)
        goal = len(self.issued) + count

        def is_enough() -> bool:
            if not without:
                return len(self.issued) >= goal
            news = self.recorder.events[before:]
            done = [event for event in news if event.op == "create" and event.phase == OK]
            return sum(event.call > first and event.node != without for event in done) >= count

        async with asyncio.timeout(within_s):
            while not is_enough():
                self._more.clear()
                await self._more.wait()

    def _up(self) -> list[str]:
        """The nodes that are neither killed nor frozen. A client that waits for one of these makes no load."""
        return [name for name, node in self.cluster.nodes.items() if node.is_up]

    async def run(self, number: int) -> None:
        dice = random.Random(f"{SEED} {number}")
        turn = 0
        while not self.stopping:
            if self.is_calm:
                await asyncio.sleep(dice.random() * THINKING_S)
            turn += 1
            subject = f"c{number}-{turn}"
            serial = await self.create(f"c{number}", subject, dice, with_token=number < TOKENS)
            await self.status(f"c{number}", serial, dice)
            if dice.random() < 0.4:
                await self.revoke(f"c{number}", serial, dice)
                await self.status(f"c{number}", serial, dice)

    async def create(self, name: str, subject: str, dice: random.Random, *, with_token: bool) -> int:
        key = generate_key("ec-p256")
        jti = ""
        token = ""

        def argument() -> Any:
            nonlocal jti, token
            if not with_token:
                return ccr(subject, key=key)
            if not token:
                jti = f"{subject}-{dice.random()}"
                now = int(time.time())
                claims = {
                    "iss": IDP,
                    "aud": "cms",
                    "sub": subject,
                    "jti": jti,
                    "iat": now,
                    "nbf": now,
                    "exp": now + 3600,
                }
                token = raw({"alg": "HS256", "typ": "JWT"}, claims, SECRET.encode(), alg="HS256")
            return token_request(token, key)

        async def call(node: str) -> Any:
            return await self.contexts[node][0].rpc("CERT:CREATE", argument(), timeout=ANSWER_S)

        def known(reply: Any) -> dict[str, Any]:
            assert reply["cert"], f"{subject} was told that it has a certificate, and it has none"
            self.pv[reply["serial"]] = reply["status_pv"]
            return {"serial": reply["serial"]}

        def refused(why: str) -> bool:
            nonlocal token
            if "the token was used before" in why:
                token = ""  # more than a minute has passed, so another one is fetched
                return True
            return False

        about = {"subject": subject, "key": subject}
        told = await self._until_known(
            name, "create", dice, call, known, refused, lambda: about | {"jti": jti}
        )
        self.issued.append(told["serial"])
        self._more.set()
        return int(told["serial"])

    async def revoke(self, name: str, serial: int, dice: random.Random, nodes: str = "") -> None:
        async def call(node: str) -> Any:
            return await self.contexts[node][1].put(self.pv[serial], {"state": "REVOKED"}, timeout=ANSWER_S)

        def already(why: str) -> bool:
            if "is REVOKED already" in why:
                raise _Done
            return False

        await self._until_known(
            name, "revoke", dice, call, lambda _: {}, already, lambda: {"serial": serial}, nodes=nodes
        )
        self.revoked.add(serial)

    async def status(self, name: str, serial: int, dice: random.Random) -> None:
        """Read a status once, at one of the nodes."""
        node = dice.choice(self._up())
        number = self.recorder.call()
        about = {"client": name, "op": "status", "node": node, "serial": serial}
        self.recorder.note(Event(number, INVOKED, time.time(), **about))
        try:
            value = await self.contexts[node][0].get(self.pv[serial], timeout=ANSWER_S)
        except ApplianceError as error:
            self.recorder.note(Event(number, UNKNOWN, time.time(), **about, why=str(error)))
            return
        answer = bytes(value["ocsp_response"])
        signed = 0.0
        if answer:
            found = verify_response(answer, issuer=self.issuer, serial=serial, now=datetime.now(UTC))
            signed = found.this_update.timestamp()
        assert value["state"] != "UNKNOWN", f"{serial} was answered, and node {node} says UNKNOWN"
        self.recorder.note(Event(number, OK, time.time(), **about, state=value["state"], signed_at=signed))

    async def _until_known(
        self,
        name: str,
        op: str,
        dice: random.Random,
        call: Callable[[str], Any],
        known: Callable[[Any], dict[str, Any]],
        refused: Callable[[str], bool],
        about: Callable[[], dict[str, Any]],
        nodes: str = "",
    ) -> dict[str, Any]:
        """Ask at one node after the other until it is done."""
        node = nodes or dice.choice(self._up())
        while True:
            number = self.recorder.call()
            pending = call(node)
            note = {"client": name, "op": op, "node": node}
            task = asyncio.ensure_future(pending)
            await asyncio.sleep(0)  # now the token is known
            self.recorder.note(Event(number, INVOKED, time.time(), **note, **about()))
            pause = 0.0
            try:
                told = known(await task)
            except RemoteError as error:
                why = str(error)
                is_unsure = UNSURE in why
                phase = UNKNOWN if is_unsure else REFUSED
                try:
                    expected = is_unsure or refused(why) or bool(passing := PASSING.search(why))
                except _Done:
                    self.recorder.note(Event(number, OK, time.time(), **note, **about()))
                    return {}
                self.recorder.note(Event(number, phase, time.time(), **note, **about(), why=why))
                assert expected, f"{name}, {op} at node {node}: {why}"
                passing = PASSING.search(why)
                pause = float(passing[1]) if passing and passing[1] else 0.1
            except ApplianceError as error:
                self.recorder.note(Event(number, UNKNOWN, time.time(), **note, **about(), why=str(error)))
                self.retries[type(error).__name__] += 1
            else:
                self.recorder.note(Event(number, OK, time.time(), **note, **{**about(), **told}))
                return told
            if not nodes:
                # As a client does that has both in its list of name servers.
                node = dice.choice([other for other in self._up() if other != node] or [node])
            await asyncio.sleep(pause)


def connected(port: int, keychain: Keychain | None = None) -> Context:
    """A client of one node, which comes back to it sooner than others do: the test waits for that after each kill."""
    server = Endpoint("127.0.0.1", port, tls=keychain is not None)
    tls = None if keychain is None else client_context(keychain, want_staple=False)
    soon = Timings(
        name_server_retry_s=0.2,
        search_s=(0.1, 0.2),
        longest_search_s=0.2,
        hurry_holdoff_s=0.2,
        suspicion_s=0.5,
    )
    settings = ClientConfig(auto_addr_list=False, name_servers=(server,))
    return Context(settings, tls=tls, beacons=False, timings=soon)


class _Done(Exception):  # noqa: N818 - no error
    """It was done by an earlier attempt whose answer was lost."""


def token_request(token: str, key: Any) -> Any:
    from appliance.authn.ccr import CertRequest, request_value
    from appliance.authn.proof import PROOF_FIELD, make_proof
    from tests.helpers.cms import pem

    request = CertRequest("jwt", "client", pem(key))
    proof = make_proof(request, key, made=int(time.time()), token=token)
    return request_value("CERT:CREATE", request._replace(verifier={"token": token, PROOF_FIELD: proof}))


async def disturb(cluster: Cluster, load: Load, what: str) -> None:
    kind, _, name = what.partition(" ")
    node = cluster.nodes.get(name)
    if kind == "kill" and node is not None:
        await asyncio.to_thread(node.kill)
        await load.progress(MORE)  # at the other node
        load.is_calm = True
        await asyncio.to_thread(node.start)
        load.is_calm = False
    elif kind == "freeze" and node is not None:
        node.is_up = False
        node.signal(signal.SIGSTOP)
        try:
            # Also if it has the writers' lock, or is in the middle of a statement.
            await load.progress(MORE, without=name)
        finally:
            node.signal(signal.SIGCONT)
            node.is_up = True
    elif kind == "database":
        await asyncio.to_thread(cluster.kill_database)
    else:
        await asyncio.to_thread(cluster.cut_connections)
    await load.progress(MORE)


KILL = ("kill a", "kill b", "database")


def actions() -> list[str]:
    """What is done, in random order: kills, and now and then a node that is frozen or all connections cut."""
    dice = random.Random(SEED)
    found: list[str] = []
    while sum(what in KILL for what in found) < KILLS:
        group = [*KILL, *KILL, "kill a", "kill b", f"freeze {dice.choice('ab')}", "cut"]
        dice.shuffle(group)
        found += group
    return found


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    config = tmp_path / "cms.yml"
    config.write_text(CONFIG % secret)
    # What was committed must be there after a kill, so commits are not asynchronous as in other tests.
    with Server(fast=False) as server:
        async with Cluster(
            tmp_path, server, "--certs-dont-require-approval", "--config", str(config)
        ) as made:
            yield made


@pytest.mark.timeout(180 + 30 * KILLS)
async def test_whatever_is_killed_nothing_that_was_answered_is_lost_or_done_twice(cluster, tmp_path):
    recorder = Recorder(tmp_path / "history.jsonl")
    done = Counter()
    async with contextlib.AsyncExitStack() as stack:
        contexts = {
            name: (
                await stack.enter_async_context(connected(node.tcp_port)),
                await stack.enter_async_context(connected(node.tls_port, cluster.administrator)),
            )
            for name, node in cluster.nodes.items()
        }
        load = Load(cluster, recorder, contexts)
        clients = [asyncio.create_task(load.run(number)) for number in range(CLIENTS)]
        chaos = asyncio.create_task(_all(cluster, load, done))
        try:
            await asyncio.wait([chaos, *clients], return_when=asyncio.FIRST_COMPLETED)
            failed = [task for task in (chaos, *clients) if task.done() and not task.cancelled()]
            for task in failed:
                task.result()
            load.stopping = True
            await asyncio.gather(*clients)
        except BaseException:
            print(cluster.situation)
            raise
        finally:
            for task in (chaos, *clients):
                task.cancel()
            await asyncio.gather(chaos, *clients, return_exceptions=True)
        assert check(recorder.events, cluster.audit(), await states(load)) == []
        # Each is revocable: half at one node, half at the other.
        rest = [serial for serial in load.issued if serial not in load.revoked]
        halves = zip(cluster.nodes, (rest[::2], rest[1::2]), strict=True)
        await asyncio.gather(*(revoke_all(load, node, serials) for node, serials in halves))
        found = await states(load, all_revoked=True)
        assert check(recorder.events, cluster.audit(), found) == []
        assert all(set(known.values()) == {"REVOKED"} for known in found.values())
    recorder.close()
    calls = Counter((event.op, event.phase) for event in recorder.events)
    print(
        f"seed {SEED}: {dict(done)}; {len(load.issued)} certificates, {dict(calls)}, lost {dict(load.retries)}"
    )


async def _all(cluster: Cluster, load: Load, done: Counter[str]) -> None:
    await load.progress(CLIENTS)
    for what in actions():
        began = time.monotonic()
        await disturb(cluster, load, what)
        done[what] += 1
        print(f"{what}: {time.monotonic() - began:.1f} s, {len(load.issued)} certificates")


async def revoke_all(load: Load, node: str, serials: list[int]) -> None:
    """Revoke all of them at one node, some at a time."""
    dice = random.Random(SEED)

    async def some(part: list[int]) -> None:
        for serial in part:
            await load.revoke("the end", serial, dice, nodes=node)

    await asyncio.gather(*(some(serials[number::CLIENTS]) for number in range(CLIENTS)))


async def states(load: Load, *, all_revoked: bool = False) -> dict[str, dict[int, str]]:
    """What each node says of each certificate, once they agree: a node may hear of a change a moment later."""
    found: dict[str, dict[int, str]] = {}
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for node, (anyone, _) in load.contexts.items():
            values = []
            for start in range(0, len(load.issued), 500):
                names = [load.pv[serial] for serial in load.issued[start : start + 500]]
                values += await anyone.get(names, timeout=60)
            found[node] = {serial: value["state"] for serial, value in zip(load.issued, values, strict=True)}
        one, two = found.values()
        if one == two and (not all_revoked or set(one.values()) == {"REVOKED"}):
            break
        await asyncio.sleep(0.1)
    return found
