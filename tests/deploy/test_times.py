"""What Molecule prints becomes a table of seconds."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
OUTPUT = """\
INFO     [default > create] Executing
INFO     [default > create] Executed: Successful
INFO     [default > converge] Executing
TASK [something] ***
    msg: 'measured: playbooks/upgrade.yml 41 s'
INFO     [default > converge] Executed: Successful
INFO     [default > idempotence] Executing
CRITICAL Idempotence test failed
ERROR    [default > idempotence] Executed: Failed
"""


@pytest.fixture(scope="module")
def times():
    spec = importlib.util.spec_from_file_location("times", HERE / "times.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def result(times) -> dict:
    clock = iter(range(0, 1000, 10))
    result: dict = {}
    passed = list(times.record("default", OUTPUT.splitlines(keepends=True), result, lambda: next(clock)))
    assert "".join(passed) == OUTPUT
    return result


def test_actions_that_succeeded_have_their_times(result):
    assert result.pop("ended").endswith("Z")
    assert result == {
        "scenario": "default",
        "actions": [["create", 10], ["converge", 10]],
        "measured": {"playbooks/upgrade.yml": 41.0},
        "seconds": 60,
    }


def test_other_scenarios_lines_do_not_count(times):
    result: dict = {}
    list(times.record("site", OUTPUT.splitlines(keepends=True), result))
    assert result["actions"] == []


@pytest.mark.parametrize(("seconds", "verdict"), [(180.0, "180"), (181.0, "180, MISSED")])
def test_table_tells_what_misses_its_limit(times, result, seconds, verdict):
    text = times.table([{**result, "seconds": seconds}])
    assert [line.split() for line in text.splitlines()[1:3]] == [
        ["default", "site.yml", "on", "fresh", "hosts", "10"],
        ["default", "playbooks/upgrade.yml", "41"],
    ]
    assert text.splitlines()[3].endswith(f"{seconds:.0f}  {verdict}")
