#!/usr/bin/env python3
"""How long deployments take, on test hosts: kept below build/molecule, one JSON file for each scenario.

times.py record SCENARIO    pass Molecule's output on, and keep the time of each of its actions
times.py show               a table of what was kept last
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

KEPT = Path(__file__).resolve().parents[2] / "build/molecule"
WHOLE = "all of it"
MEANING = {
    "check": "check mode on blank hosts",
    "converge": "site.yml on fresh hosts",
    "idempotence": "site.yml again",
}
WANTED = {("default", WHOLE): 180.0}
"""Seconds, where a limit was set: with the hosts' base image there."""


def record(
    scenario: str, lines: Iterable[str], result: dict[str, Any], now: Callable[[], float] = time.monotonic
) -> Iterator[str]:
    """The lines as they are; at the end of them ``result`` says what took how long."""
    began = action_began = now()
    result.update(scenario=scenario, actions=[], measured={})
    for line in lines:
        yield line
        found = re.search(rf"\[{re.escape(scenario)} > (\S+)\] (Executing|Executed: Successful)", line)
        if found and found[2] == "Executing":
            action_began = now()
        elif found:
            result["actions"].append([found[1], round(now() - action_began, 1)])
        measured = re.search(r"measured: (.+) ([0-9.]+) s\b", line)
        if measured:
            result["measured"][measured[1]] = float(measured[2])
    result["seconds"] = round(now() - began, 1)
    result["ended"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def rows(results: Iterable[dict[str, Any]]) -> Iterator[tuple[str, str, float, float | None]]:
    """Scenario, what was measured, seconds, and how many are wanted at most."""
    for result in results:
        scenario = result["scenario"]
        steps = [(MEANING[name], seconds) for name, seconds in result["actions"] if name in MEANING]
        if scenario == "negative":
            # It deploys nothing: its actions have these names, but other work.
            steps = []
        for what, seconds in [*steps, *result["measured"].items(), (WHOLE, result["seconds"])]:
            yield scenario, what, seconds, WANTED.get((scenario, what))


def table(results: Iterable[dict[str, Any]]) -> str:
    """For people to read."""
    lines = [f"{'scenario':<10} {'what':<28} {'seconds':>7}  wanted"]
    for scenario, what, seconds, limit in rows(results):
        verdict = "" if limit is None else f"{limit:.0f}{'' if seconds <= limit else ', MISSED'}"
        lines.append(f"{scenario:<10} {what:<28} {seconds:>7.0f}  {verdict}".rstrip())
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Gives the exit status."""
    if arguments[:1] == ["record"] and len(arguments) == 2:
        result: dict[str, Any] = {}
        for line in record(arguments[1], sys.stdin, result):
            sys.stdout.write(line)
            sys.stdout.flush()
        KEPT.mkdir(parents=True, exist_ok=True)
        (KEPT / f"{arguments[1]}.json").write_text(json.dumps(result, indent=2) + "\n")
        actions = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result["actions"])
        print(f"molecule: {arguments[1]}: {actions}, all {result['seconds']:.0f} s", flush=True)
        return 0
    if arguments == ["show"]:
        print(table(json.loads(path.read_text()) for path in sorted(KEPT.glob("*.json"))))
        return 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
