"""Each public docstring says what a program needs, and its example runs against a real server."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import doctest
import inspect
import io
import logging
import re
import traceback
from collections.abc import AsyncIterator, Awaitable, Iterator
from importlib import import_module
from types import CodeType
from typing import Any, NamedTuple

import pytest

import appliance
from appliance import (
    FLOAT64,
    ArrayType,
    Context,
    NTEnum,
    NTScalar,
    Server,
    SharedPV,
    Value,
)
from appliance.blocking import Context as BlockingContext
from tests.helpers.public_names import p4p_names, public_names

TO_OVERRIDE = {"appliance.server.Handler", "appliance.server.Source", "appliance.server.AccessPolicy"}
"""Programs define the methods of these themselves: the example is the class's."""

GIVEN = {
    "appliance.Effective",
    "appliance.blocking.Monitor",
    "appliance.client.Monitor",
    "appliance.pvdata.ScalarType",
    "appliance.pvdata.View",
    "appliance.server.AccessPolicy",
    "appliance.server.Channel",
    "appliance.server.Operation",
    "appliance.server.Subscription",
}
"""Programs get objects of these classes, and do not make them: how they are made is internal."""


class Documented(NamedTuple):
    """A public class, function or method."""

    path: str
    thing: Any
    owner: type | None

    @property
    def text(self) -> str:
        return inspect.getdoc(self.thing) or ""

    @property
    def is_error(self) -> bool:
        return inspect.isclass(self.thing) and issubclass(self.thing, BaseException)


def p4p_documented() -> list[Documented]:
    """What p4p's API has, with the methods that each class defines itself."""
    found = []
    for name in p4p_names():
        thing = name.thing
        if inspect.isclass(thing) or inspect.isroutine(thing):
            found.append(Documented(name.path, thing, None))
        if inspect.isclass(thing):
            own = [member for member in vars(thing) if not member.startswith("_")]
            methods = [(member, getattr(thing, member)) for member in own]
            found += [
                Documented(f"{name.path}.{member}", method, thing)
                for member, method in methods
                if inspect.isroutine(method)
            ]
    return found


def documented() -> list[Documented]:
    found = []
    for name in public_names():
        thing = name.thing
        if name.home != name.module or not (inspect.isclass(thing) or inspect.isroutine(thing)):
            continue
        found.append(Documented(name.path, thing, None))
        for member in name.members:
            method = getattr(thing, member, None)
            if inspect.isroutine(method):
                found.append(Documented(f"{name.path}.{member}", method, thing))
    return found


ALL = documented()
P4P = p4p_documented()
P4P_WITHOUT = re.compile(
    r"appliance\.p4p\.(cleanup|replace_p4p|server\.Server\.forever|rpc\.quickRPCServer"  # they change or occupy the whole process
    r"|nt\.NTBase\.\w+|server\.raw\.Handler\.\w+"  # programs define these themselves
    r"|client\.raw\.(Operation|Subscription)(\.\w+)?|client\.(thread|asyncio)\.Subscription|server\.ServerOperation(\.\w+)?)"  # they are given
)
PARSER = doctest.DocTestParser()
CHECKER = doctest.OutputChecker()


def examples(text: str) -> list[doctest.Example]:
    return PARSER.get_examples(text)


@pytest.mark.parametrize("item", ALL, ids=lambda item: item.path)
def test_a_public_docstring_names_every_argument_and_what_comes_back(item: Documented) -> None:
    assert item.text, "it has no docstring"
    made_here = inspect.isclass(item.thing) and "__init__" in vars(item.thing) and item.path not in GIVEN
    if item.is_error or (inspect.isclass(item.thing) and not made_here):
        return
    text = item.text
    listed = text.partition("Args:\n")[2]
    signature = inspect.signature(item.thing)
    for name, parameter in signature.parameters.items():
        if name != "self" and not name.startswith("_"):
            assert f"    {name}: " in listed, (
                f"Args does not name {name}, which is {parameter.kind.description}"
            )
    if inspect.isclass(item.thing) or isinstance(item.thing, property):
        return
    if signature.return_annotation not in ("None", "Self", None):
        assert any(word in text for word in ("Returns:\n", "Yields:\n", "Whether ")), (
            "it does not say what it returns"
        )


@pytest.mark.parametrize("item", ALL, ids=lambda item: item.path)
def test_a_public_docstring_has_an_example(item: Documented) -> None:
    if item.is_error and item.thing is not appliance.ApplianceError:
        return
    if item.owner is not None and item.path.rpartition(".")[0] in TO_OVERRIDE:
        return
    assert examples(item.text)


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    """Leave the loggers as they were; the example of ``set_debug`` changes them."""
    root = logging.getLogger("appliance")
    before = root.level, root.handlers[:]
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]


@pytest.fixture
async def site(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[dict[str, Any]]:
    """Serve the PVs of the examples, set the environment so that programs find them, and give the names that examples use."""
    for variable, text in {
        "EPICS_PVA_AUTO_ADDR_LIST": "NO",
        "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1",
        "EPICS_PVAS_SERVER_PORT": "0",
        "EPICS_PVAS_BROADCAST_PORT": "0",
        "EPICS_PVA_TLS_KEYCHAIN": "",
    }.items():
        monkeypatch.setenv(variable, text)
    server = Server()
    temperature = Value(NTScalar(FLOAT64, display=True), {"value": 21.5, "display.units": "C"})
    server.add_pv("demo:temperature", SharedPV(temperature))
    server.add_pv("demo:setpoint", SharedPV.mailbox(Value(NTScalar(FLOAT64), 4.0)))
    server.add_pv("demo:mode", SharedPV.mailbox(Value(NTEnum(), {"value.choices": ["off", "on"]})))
    server.add_pv("demo:waveform", SharedPV.mailbox(NTScalar(ArrayType(FLOAT64))))
    server.add_pv("demo:sum", SharedPV(on_rpc=_sum))
    async with server:
        monkeypatch.setenv("EPICS_PVA_ADDR_LIST", f"127.0.0.1:{server.udp_port}")
        names = {name: getattr(appliance, name) for name in appliance.__all__}
        async with Context() as ctx:
            yield {**names, "appliance": appliance, "asyncio": asyncio, "server": server, "ctx": ctx}


def _sum(pv: SharedPV, operation: Any, argument: Value | None) -> Value:
    assert argument is not None
    return Value(NTScalar(FLOAT64), argument["query.a"] + argument["query.b"])


def compiled(example: doctest.Example) -> CodeType:
    return compile(example.source, "<example>", "single", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


def waits(text: str) -> bool:
    """Whether the examples await something."""
    return any(compiled(example).co_flags & inspect.CO_COROUTINE for example in examples(text))


def steps(text: str, names: dict[str, Any]) -> Iterator[Awaitable[Any]]:
    """Run the examples of a docstring, as ``python -m asyncio`` does, and compare what they show; yield what is to be awaited."""
    for example in examples(text):
        shown = io.StringIO()
        said = ""
        with contextlib.redirect_stdout(shown):
            try:
                result = eval(compiled(example), names)
                if inspect.iscoroutine(result):
                    yield result
            except Exception as error:
                said = traceback.format_exception_only(error)[-1]
                assert example.exc_msg is not None, f"{example.source}{said}"
        if example.exc_msg is not None:
            assert CHECKER.check_output(example.exc_msg, said, doctest.ELLIPSIS), f"{example.source}{said}"
        else:
            assert CHECKER.check_output(example.want, shown.getvalue(), doctest.ELLIPSIS), (
                f"{example.source}{shown.getvalue()}"
            )


async def run(text: str, names: dict[str, Any]) -> None:
    """Run examples that may wait."""
    running = steps(text, names)
    step = next(running, None)
    while step is not None:
        try:
            await asyncio.wait_for(step, 60.0)
        except Exception as error:
            try:
                step = running.throw(error)
            except StopIteration:
                return
        else:
            step = next(running, None)


@pytest.mark.parametrize("item", [item for item in ALL if examples(item.text)], ids=lambda item: item.path)
async def test_the_example_of_a_public_docstring_runs_and_shows_what_it_says(
    item: Documented, site: dict[str, Any]
) -> None:
    if not item.path.startswith("appliance.blocking."):
        await run(item.text, site)
        return
    with await asyncio.to_thread(BlockingContext) as ctx:
        await asyncio.to_thread(asyncio.run, run(item.text, {**site, "ctx": ctx}))


@pytest.mark.parametrize("item", P4P, ids=lambda item: item.path)
def test_a_docstring_of_p4ps_api_has_an_example(item: Documented) -> None:
    assert item.text, "it has no docstring"
    assert item.is_error or P4P_WITHOUT.fullmatch(item.path) or examples(item.text)


@pytest.mark.parametrize("item", [item for item in P4P if examples(item.text)], ids=lambda item: item.path)
async def test_the_example_of_p4ps_api_runs_and_shows_what_it_says(
    item: Documented, site: dict[str, Any]
) -> None:
    def program() -> None:
        home = import_module(
            next(name.module for name in p4p_names() if f"{item.path}.".startswith(f"{name.path}."))
        )
        kind = next(
            (kind for kind in ("raw", "asyncio") if item.path.startswith(f"appliance.p4p.client.{kind}.")),
            "thread",
        )
        client = import_module(f"appliance.p4p.client.{kind}")
        with client.Context("pva", useenv=True) as ctxt:
            names = {**vars(home), "asyncio": asyncio, "ctxt": ctxt}
            on_loop = ".client.asyncio." in item.path  # as in `python -m asyncio`
            if on_loop or waits(item.text):
                asyncio.run(run(item.text, names))
            else:
                assert list(steps(item.text, names)) == []

    await asyncio.to_thread(program)


def test_help_shows_arguments_and_example(capsys: pytest.CaptureFixture[str]) -> None:
    help(appliance.Context.get)
    shown = capsys.readouterr().out
    assert "Args:" in shown
    assert ">>> value = await ctx.get(" in shown
