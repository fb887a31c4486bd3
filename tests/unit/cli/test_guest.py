"""A tool that runs inside another program leaves its logging as it was."""

from __future__ import annotations

import argparse
import gc
import io
import logging
import sys
from collections.abc import Callable

import pytest

from appliance.cli.common import Parser, run_tool

APPLIANCE = logging.getLogger("appliance")


def state() -> list[object]:
    root = logging.getLogger()
    return [
        [(logger.level, logger.propagate, logger.handlers[:]) for logger in (root, APPLIANCE)],
        [handler.filters[:] for handler in root.handlers],
        logging.getLogger("appliance.tls.engine").level,
        logging.raiseExceptions,
    ]


async def quiet(options: argparse.Namespace) -> int:
    return 0


async def chatty(options: argparse.Namespace) -> int:
    logging.getLogger("appliance.x").warning("once")
    logging.getLogger("appliance.x").warning("once")
    return 0


async def silencing(options: argparse.Namespace) -> int:
    APPLIANCE.setLevel(logging.CRITICAL + 1)
    return 0


@pytest.mark.parametrize("work", [quiet, chatty, silencing], ids=lambda work: work.__name__)
@pytest.mark.parametrize("debug", ["", "tls.engine=DEBUG"])
def test_logging_is_as_it_was_when_a_tool_ends(
    work: Callable[[argparse.Namespace], object],
    debug: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("PVXS_LOG", debug)
    before = state()
    parser = Parser(prog="guest")
    parser.set_defaults(debug=False, verbose=False)
    for _ in range(2):
        assert run_tool(parser, [], work) == 0  # type: ignore[arg-type]
    assert state() == before
    assert capsys.readouterr().err.count("once") == (2 if work is chatty else 0), "each run tells it once"
    caplog.clear()
    for _ in range(2):
        logging.getLogger("appliance.x").warning("heard")
    assert caplog.text.count("heard") == 2


@pytest.mark.parametrize("collects", [True, False])
def test_garbage_collection_and_standard_output_are_as_they_were_when_a_tool_ends(collects: bool) -> None:
    parser = Parser(prog="guest")
    parser.set_defaults(debug=False, verbose=False)
    assert isinstance(sys.stdout, io.TextIOWrapper)
    was_on, errors = gc.isenabled(), sys.stdout.errors
    (gc.enable if collects else gc.disable)()
    try:
        assert run_tool(parser, [], quiet) == 0  # type: ignore[arg-type]
        assert gc.isenabled() is collects
        assert sys.stdout.errors == errors != "surrogateescape"
    finally:
        (gc.enable if was_on else gc.disable)()
