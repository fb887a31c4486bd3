"""A site's files of p4p's gateway, used by p4p's gateway and by ours: the same rights and the same log."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.client import Context
from appliance.errors import RemoteError
from appliance.pva import commands as c
from appliance.pvdata.nt import NTEnum, NTScalar, NTScalarArray
from appliance.pvdata.types import BOOL, FLOAT64, INT32, STRING
from appliance.pvdata.value import Value
from appliance.server import Operation, SharedPV
from tests.helpers.gateway_process import p4ps
from tests.helpers.live import until
from tests.helpers.ours import client_config, served

USER = getpass.getuser()
RULES = f"""
UAG(me) {{ {USER} }}
UAG(others) {{ nobody-else }}
ASG(DEFAULT) {{ RULE(1, READ) }}
ASG(LOGGED) {{ RULE(1, WRITE, TRAPWRITE) {{ UAG(me) }} }}
ASG(CALLED) {{ RULE(1, RPC) }}
ASG(WRITTEN) {{ RULE(1, PUT) }}
ASG(OTHERS) {{ RULE(1, WRITE) {{ UAG(others) }} }}
"""
PVLIST = r"""
EVALUATION ORDER ALLOW, DENY
u:.* ALLOW
log:(.*) ALIAS u:\1 LOGGED
called:(.*) ALIAS u:\1 CALLED
written:(.*) ALIAS u:\1 WRITTEN
others:(.*) ALIAS u:\1 OTHERS
GW:.* ALLOW CALLED
u:hidden DENY
u:guest DENY FROM 127.0.0.1
"""
LOGGING = """
/* puts to a file of their own */
{{
    "version": 1,
    "disable_existing_loggers": false,
    "formatters": {{"plain": {{"format": "%(name)s %(message)s"}}}},
    "handlers": {{"puts": {{"class": "logging.FileHandler", "filename": "{}", "formatter": "plain"}}}},
    "loggers": {{"{}": {{"handlers": ["puts"], "level": "INFO", "propagate": false}}}}
}}
"""
WRITES: dict[str, Any] = {
    "int": -7,
    "double": 2.25,
    "string": 'he said "x"\nand é',
    "array": np.arange(12, dtype="f8"),
    "strings": ["a b", "c"],
    "bool": True,
    "empty": np.zeros(0),
}
SHOWN = {
    "int": "int32_t = -7",
    "double": "double = 2.25",
    "string": 'string = "he said \\"x\\"\\nand \\xc3\\xa9"',
    "array": "double[] = {12}[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...]",
    "strings": 'string[] = {2}["a b", "c"]',
    "bool": "bool = true",
    "empty": "double[] = {0}[]",
}


def answer(pv: SharedPV, operation: Operation, argument: Value | None) -> Value:
    return Value(NTScalar(FLOAT64), {"value": 42.0})


def pvs() -> dict[str, SharedPV]:
    made = {
        "int": Value(NTScalar(INT32)),
        "double": Value(NTScalar(FLOAT64)),
        "string": Value(NTScalar(STRING)),
        "array": Value(NTScalarArray(FLOAT64)),
        "strings": Value(NTScalarArray(STRING)),
        "bool": Value(NTScalar(BOOL)),
        "empty": Value(NTScalarArray(FLOAT64)),
        "enum": Value(NTEnum(), {"value.choices": ["a", "b"]}),
        "hidden": Value(NTScalar(FLOAT64)),
        "guest": Value(NTScalar(FLOAT64)),
    }
    return {
        f"u:{name}": SharedPV(value, on_put=lambda pv, op, new: pv.post(new), on_rpc=answer)
        for name, value in made.items()
    }


async def tried(client: Context, name: str) -> tuple[bool, bool, bool]:
    """Whether a client may read, write and call a PV."""
    granted = []
    for attempt in (client.get(name), client.put(name, 1.0), client.rpc(name, {"a": 1})):
        try:
            await attempt
            granted.append(True)
        except RemoteError:
            granted.append(False)
    return granted[0], granted[1], granted[2]


# Started as a module, p4p's gateway has another name for its logger than started by its script.
@pytest.mark.parametrize(
    ("program", "logger"), [("p4p.gw", "__main__.audit"), ("appliance.gateway.daemon", "p4p.gw.audit")]
)
async def test_the_same_files_give_the_same_rights_and_the_same_log(
    tmp_path: Path, program: str, logger: str
) -> None:
    (tmp_path / "gw.acf").write_text(RULES)
    (tmp_path / "gw.pvlist").write_text(PVLIST)
    (tmp_path / "logging.json").write_text(LOGGING.format(tmp_path / "puts.log", logger))
    options = ["--logging", str(tmp_path / "logging.json")]
    async with served(pvs()) as server:
        files = {"access": "gw.acf", "pvlist": "gw.pvlist", "statusprefix": "GW:"}
        async with p4ps(tmp_path, server.udp_port, program=program, options=options, **files) as gateway:
            async with Context(client_config(gateway.udp), beacons=False) as client:
                assert {name: await tried(client, f"{name}:double") for name in ("u", "log", "called", "written", "others")} == {
                    "u": (True, False, False),
                    "log": (True, True, True),
                    "called": (True, False, True),
                    "written": (True, True, False),
                    "others": (True, False, False),
                }  # fmt: skip
                told = client.channel("called:double").permissions
                assert told == (c.PERMIT_ALL if program == "p4p.gw" else c.PERMIT_RPC), "p4p tells no rights"
                for name, value in WRITES.items():
                    await client.put(f"log:{name}", value, timeout=30)
                await client.put("log:enum", 1)
                answer = await client.rpc("GW:asTest", {"pv": "log:int"})
                assert answer is not None
                assert (answer["account"], answer["asg"], answer["permission.audit"]) == (
                    USER,
                    "LOGGED",
                    True,
                )
        log = tmp_path / "puts.log"
        await until(lambda: "log:enum" in log.read_text())
    lines = [line for line in log.read_text().splitlines() if line]
    found = []
    for line in lines:
        name, day, time, who, what = line.split(" ", 4)
        assert (name, len(day), len(time)) == (logger, 10, 18)
        assert who.startswith(f"ca/{USER}@127.0.0.1:")
        found.append(what)
    assert found[0] == "log:double as u:double -> double = 1"
    assert found[1:-1] == [f"log:{name} as u:{name} -> {text}" for name, text in SHOWN.items()]
    assert found[-1].startswith("log:enum as u:enum"), "p4p's gateway shows no value of an enumeration"
