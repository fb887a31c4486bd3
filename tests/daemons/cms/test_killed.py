"""kill -9 of the service between "renewed" and "published"."""

import asyncio
import json
import signal
import sqlite3

import pytest

from appliance.certs.profiles import generate_key
from appliance.errors import ApplianceError, RemoteError
from tests.helpers.cms import Process, ccr, client, pem

OPEN = "--certs-dont-require-approval"
DIES_WHEN_RENEWED = """
import os, signal, sys
from appliance.cms.daemon import main
from appliance.cms.lifecycle import Lifecycle

announce = Lifecycle._announce

def die(self, record, *rest):
    if self.renewed:
        os.kill(os.getpid(), signal.SIGKILL)
    announce(self, record, *rest)

Lifecycle._announce = die
sys.exit(main())
"""


async def follow(context, name, seen):
    """Put each state of a certificate into the queue ``seen``, across the service's restarts."""
    async with context.monitor(name) as statuses:
        async for value in statuses:
            seen.put_nowait((value["state"], value["renew_by"], value["renewal_due"]))


async def wait_for(seen, state):
    while True:
        found = await asyncio.wait_for(seen.get(), 60)
        if found[0] == state:
            return found


def short(directory, cadence):
    config = directory / f"{cadence}.yml"
    config.write_text(f"cert_renewal_client: {cadence}\n")
    return "--config", str(config)


async def test_a_renewal_that_nobody_was_told_of_is_true_after_the_restart(tmp_path):
    key = generate_key("ec-p256")
    seen = asyncio.Queue()
    with Process(tmp_path, OPEN, *short(tmp_path, "2s")) as process:
        process.ready()
        port = str(process.tcp_port)
        async with client(process.tcp_port) as watcher:
            first = await watcher.rpc("CERT:CREATE", ccr("operator", key=key))
            assert first["cert"]
            following = asyncio.ensure_future(follow(watcher, first["status_pv"], seen))
            before = await wait_for(seen, "PENDING_RENEWAL")
            assert before[2], "who waits for a renewal has one due"
            assert process.stop()[0] == 0
            with Process(
                tmp_path,
                OPEN,
                *short(tmp_path, "1h"),
                program=("-c", DIES_WHEN_RENEWED),
                EPICS_PVACMS_SERVER_PORT=port,
            ) as dying:
                dying.ready()
                assert await wait_for(seen, "PENDING_RENEWAL") == before
                async with client(dying.tcp_port) as holder:
                    with pytest.raises(ApplianceError):
                        # Sent once: it fails when the connection ends, because nobody knows what became of it.
                        await holder.rpc("CERT:CREATE", ccr("operator", key=key), timeout=60)
                assert await asyncio.to_thread(dying.process.wait, 60) == -signal.SIGKILL
            with Process(tmp_path, OPEN, *short(tmp_path, "1h"), EPICS_PVACMS_SERVER_PORT=port) as again:
                again.ready()
                state, renew_by, due = await wait_for(seen, "VALID")
                assert renew_by > before[1] + 3000
                assert not due
                # Asking again renews again, and gets no second certificate.
                async with client(again.tcp_port) as holder:
                    reply = await holder.rpc("CERT:CREATE", ccr("operator", key=key))
                assert (reply["serial"], reply["state"], reply["cert"]) == (first["serial"], "VALID", "")
                following.cancel()
                assert again.stop()[0] == 0
            assert state == "VALID"
    connection = sqlite3.connect(process.db)
    try:
        records = [
            json.loads(text) for (text,) in connection.execute("SELECT record FROM audit ORDER BY seq")
        ]
    finally:
        connection.close()
    told = [
        (record["action"], record["state"]) for record in records if record["serial"] == str(first["serial"])
    ]
    assert told == [
        ("create", "VALID"),
        ("clock", "PENDING_RENEWAL"),
        ("renew", "VALID"),
        ("renew", "VALID"),
    ]


NEVER_MARKS = """
import sys
from appliance.cms.daemon import main
from appliance.cms.lifecycle import Lifecycle

Lifecycle.delivered = lambda self, serial: None
sys.exit(main())
"""


async def test_after_a_kill_only_its_holder_ends_a_certificate_that_may_have_been_delivered(tmp_path):
    """Its public key is in every handshake. No approval is needed, so a stranger could have the same name otherwise."""
    key = generate_key("ec-p256")
    with Process(tmp_path, OPEN, program=("-c", NEVER_MARKS)) as process:
        process.ready()
        async with client(process.tcp_port) as holder:
            first = await holder.rpc("CERT:CREATE", ccr("operator", key=key))
        process.process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(process.process.wait, 60)
    with Process(tmp_path, OPEN) as again:
        again.ready()
        async with client(again.tcp_port) as context:
            with pytest.raises(RemoteError, match="may have reached nobody"):
                await context.rpc("CERT:CREATE", ccr("operator", pub_key=pem(key)))
            assert (await context.get(first["status_pv"]))["state"] == "VALID"
            second = await context.rpc("CERT:CREATE", ccr("operator", key=key))
            assert second["state"] == "VALID"
            assert second["serial"] != first["serial"]
            assert (await context.get(first["status_pv"]))["state"] == "REVOKED"
        assert again.stop()[0] == 0
