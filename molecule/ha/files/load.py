"""Ask for many certificates, each until it is answered; then ask every node about them.

load.py ask NAME COUNT PER_SECOND ADDRESS...   asks for NAME-0, NAME-1, ..., 16 at a time, and writes NAME.json when all are answered.
                                       COUNT 0: until there is a file NAME.stop
load.py check NAME ADDRESS...          each of them is VALID at each of these nodes, asked one by one

The requests come from two clients for each node: one that knows this node alone until it fails, and one that knows all.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from appliance import Context
from appliance.authn.ccr import CertRequest, read_reply, request_value
from appliance.authn.proof import PROOF_FIELD, make_proof
from appliance.config.pva import resolve_client
from appliance.errors import ApplianceError

HERE = Path("/run/verify")
IN_FLIGHT = 16
PATIENCE_S = 600


def config(*addresses: str):
    variables = {"EPICS_PVA_AUTO_ADDR_LIST": "NO", "EPICS_PVA_ADDR_LIST": " ".join(addresses)}
    return resolve_client(environ=variables).config


def request(name: str, key: ec.EllipticCurvePrivateKey) -> CertRequest:
    """Make a request with a new proof: a service takes each proof once."""
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    made = CertRequest(type="std", usage="client", pub_key=public.decode(), name=name, organization="load")
    return made._replace(verifier={PROOF_FIELD: make_proof(made, key, made=int(time.time()))})


class Client:
    """One client of the service, first with one node and then with all."""

    def __init__(self, first: list[str], nodes: list[str]) -> None:
        self.first, self.nodes = first, nodes
        self.context: Context | None = None
        self.left: list[Context] = []

    async def ask(self, name: str, tries: list[str]):
        key = ec.generate_private_key(ec.SECP256R1())
        end = time.monotonic() + PATIENCE_S
        while True:
            if self.context is None:
                self.context = Context(config(*self.first), beacons=False)
                await self.context.start()
            context = self.context
            try:
                argument = request_value("CERT:CREATE", request(name, key))
                return read_reply(await context.rpc("CERT:CREATE", argument, timeout=60))
            except ApplianceError as error:
                tries.append(str(error))
                if time.monotonic() > end:
                    sys.exit(f"{name} was not answered: {tries}")
                if self.context is context:
                    # Other requests of it may still be answered.
                    self.left.append(context)
                    self.first, self.context = self.nodes, None
                await asyncio.sleep(1)

    async def close(self) -> None:
        for context in [*self.left, *filter(None, [self.context])]:
            await context.close()


async def ask(name: str, count: int, per_second: float, nodes: list[str]) -> None:
    clients = [Client([node], nodes) for node in nodes] + [Client(nodes, nodes) for _ in nodes]
    free = asyncio.Semaphore(IN_FLIGHT)
    answered: dict[str, dict] = {}

    async def one(number: int) -> None:
        async with free:
            tries: list[str] = []
            reply = await clients[number % len(clients)].ask(f"{name}-{number}", tries)
            answered[f"{name}-{number}"] = {"issuer": reply.issuer, "serial": reply.serial, "tries": tries}
            (HERE / f"{name}.count").write_text(str(len(answered)))

    began = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for number in range(count) if count else itertools.count():
            if per_second:
                await asyncio.sleep(max(0, began + number / per_second - time.monotonic()))
            if not count and (HERE / f"{name}.stop").exists():
                break
            tasks.create_task(one(number))
    for client in clients:
        await client.close()
    (HERE / f"{name}.json").write_text(json.dumps(answered))
    again = [tries for each in answered.values() if (tries := each["tries"])]
    print(
        f"{len(answered)} certificates in {time.monotonic() - began:.1f} s, {len(again)} of them asked for again"
    )
    for tries in again:
        print(" ", "; ".join(tries)[:300])


async def check(name: str, nodes: list[str]) -> None:
    answered = json.loads((HERE / f"{name}.json").read_text())
    for node in nodes:
        async with Context(config(node), beacons=False) as context:

            async def state(each: dict, context: Context = context) -> str:
                value = await context.get(f"CERT:STATUS:{each['issuer']}:{each['serial']:020}", timeout=20)
                return value["status.value.choices"][value["status.value.index"]]

            states = await asyncio.gather(*(state(each) for each in answered.values()))
        wrong = {name: state for name, state in zip(answered, states, strict=True) if state != "VALID"}
        if wrong:
            sys.exit(f"at {node}: {wrong}")
    print(f"{len(answered)} certificates are VALID at {len(nodes)} nodes")


if __name__ == "__main__":
    command, name, *rest = sys.argv[1:]
    if command == "ask":
        count, per_second, *addresses = rest
        asyncio.run(ask(name, int(count), float(per_second), addresses))
    else:
        asyncio.run(check(name, rest))
