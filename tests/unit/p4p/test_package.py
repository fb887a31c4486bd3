"""The names at the top of the package, and those of p4p's extension module."""

import logging
import os
import subprocess
import sys

import pytest

import appliance.p4p as p4p
from appliance.p4p import _p4p
from appliance.p4p.version import Version


def run(program: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_the_top_names_are_those_of_p4p():
    program = "import p4p; print(*sorted(n for n in dir(p4p) if n[0] != '_' and n not in {'epicscorelibs', 'pvxslibs'}))"
    names = run(program).stdout.split()
    assert "set_debug" in names
    assert [name for name in names if name not in {"logging", "atexit"} and not hasattr(p4p, name)] == []


def test_values_are_those_that_p4p_has():
    program = """
import importlib, sys
top, c = importlib.import_module(sys.argv[1]), importlib.import_module(sys.argv[1] + "._p4p")
print([getattr(top, name) for name in sorted(dir(top)) if name.startswith("logLevel")], str(top.version))
print(top.pvdVersion(), top.pvaVersion(), top.pvxsVersion(), c.version(), c._forceLazy())
"""
    theirs, ours = run(program, "p4p"), run(program, "appliance.p4p")
    assert theirs.stdout == ours.stdout != ""


@pytest.mark.parametrize(
    ("text", "parts"),
    [("4.3.0", (4, 3, 0)), ("4.3.0a1", (4, 3, 0, -2, 1)), ("12.0.7b12", (12, 0, 7, -1, 12))],
)
def test_versions_are_texts_and_tuples(text, parts):
    version = Version(text)
    assert str(version) == text
    assert repr(version) == f"Version({text!r})"
    assert version == text
    assert version == parts
    assert version >= parts
    assert version <= text
    assert version > (3, 9)
    assert version < "13.0.0"
    assert version.is_release is (len(parts) == 3)


@pytest.mark.parametrize("wrong", ["4.3", "x", "4.3.0c1", ""])
def test_what_is_no_version_is_refused(wrong):
    with pytest.raises(ValueError, match="Invalid version"):
        Version(wrong)
    with pytest.raises(ValueError, match="len"):
        assert Version("1.0.0") == (1, 2, 3, 4, 5, 6)


# --- logging


@pytest.fixture(autouse=True)
def quiet():
    """Leave the loggers as they were."""
    root = logging.getLogger("appliance")
    before = root.level, root.handlers[:]
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]


@pytest.mark.parametrize(
    "level", [logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL]
)
def test_set_debug_sets_the_level_of_the_client_and_the_server(level):
    p4p.set_debug(level)
    assert logging.getLogger("appliance").level == level


@pytest.mark.parametrize("wrong", [0, 7, 15, 60, "DEBUG", None])
def test_set_debug_refuses_what_p4p_refuses(wrong):
    with pytest.raises(AssertionError) as caught:
        p4p.set_debug(wrong)
    assert caught.value.args == (wrong,)


SAYS = """
import logging
from appliance import p4p
{first}
p4p.set_debug(logging.{level})
p4p.set_debug(logging.{level})
logging.getLogger("appliance.client").info("hello")
"""


def test_messages_go_to_stderr_if_the_program_has_no_handlers_of_its_own():
    done = run(SAYS.format(first="", level="INFO"))
    assert done.stderr.count("INFO appliance.client hello") == 1
    assert done.stdout == ""
    assert run(SAYS.format(first="", level="WARNING")).stderr == ""


def test_messages_go_to_the_handlers_of_the_program():
    done = run(SAYS.format(first="logging.basicConfig(format='mine: %(message)s')", level="INFO"))
    assert done.stderr == "mine: hello\n"


@pytest.mark.parametrize("spec", ["*=DEBUG", "pvxs.*=INFO", "pvxs.client.*=DEBUG"])
def test_pvxs_log_is_followed_as_by_programs_with_p4p(spec):
    program = 'import appliance.p4p, logging\nlogging.getLogger("appliance.client").info("hello")'
    assert "hello" in run(program, PVXS_LOG=spec).stderr


def test_a_wrong_pvxs_log_is_told():
    assert "PVXS_LOG: log level 'x=LOUD' ignored" in run("import appliance.p4p", PVXS_LOG="x=LOUD").stderr


def test_secrets_are_not_in_the_messages():
    program = SAYS.format(first="", level="INFO").replace("hello", "password=hunter2")
    assert "hunter2" not in run(program).stderr


# --- the names of the extension module


def test_the_errors_and_values_of_the_extension_module_are_ours():
    from appliance.p4p.client.raw import Cancelled, Disconnected, Finished, RemoteError
    from appliance.p4p.wrapper import Type, Value

    assert [_p4p.Cancelled, _p4p.Disconnected, _p4p.Finished, _p4p.RemoteError] == [
        Cancelled,
        Disconnected,
        Finished,
        RemoteError,
    ]
    assert [_p4p.Value, _p4p._Value, _p4p.Type, _p4p._Type] == [Value, Value, Type, Type]
    assert p4p.Value is Value


def test_every_name_of_the_extension_module_leads_somewhere():
    for name in _p4p._HOMES:
        assert getattr(_p4p, name) is not None


def test_contexts_count_until_they_are_closed():
    from appliance.p4p.client.thread import Context

    before = p4p.listRefs()["ClientContextImpl"]
    with Context("pva", conf={"EPICS_PVA_AUTO_ADDR_LIST": "NO"}, useenv=False):
        assert p4p.listRefs()["ClientContextImpl"] == before + 1
    assert p4p.listRefs()["ClientContextImpl"] == before


def test_what_the_extension_module_had_and_we_do_not_is_told():
    with pytest.raises(AttributeError, match="no extension module"):
        _p4p.SharedArray  # noqa: B018
    with pytest.raises(ImportError, match="SharedArray"):
        from appliance.p4p._p4p import SharedArray  # noqa: F401


def test_objects_that_are_alive_are_counted():
    from appliance.p4p import Type, Value

    before = p4p.listRefs()["StructTop"]
    kept = [Value(Type([("a", "i")])) for _ in range(3)]
    assert p4p.listRefs()["StructTop"] == before + 3
    del kept[1:]
    assert p4p.listRefs()["StructTop"] == before + 1


def test_there_is_nothing_left_for_later():
    assert _p4p._forceLazy() is None


CLEANED = """
from appliance import p4p
from appliance.p4p.client.thread import Context
from appliance.p4p.nt import NTScalar
from appliance.p4p.server import Server
from appliance.p4p.server.thread import SharedPV

def both():
    server = Server(providers=[{"a": SharedPV(nt=NTScalar("i"), initial=7)}], isolate=True)
    return server, Context("pva", conf=server.conf(), useenv=False)

first = both()
print(int(first[1].get("a")))
p4p.cleanup()
p4p.cleanup()
try:
    first[1].get("a")
except RuntimeError:
    print("closed")
with first[0], first[1]:
    pass
second = both()
print(int(second[1].get("a")))
"""


def test_cleanup_closes_everything_and_new_clients_and_servers_work():
    """The last pair is left to the interpreter's end, which does the same."""
    done = run(CLEANED)
    assert (done.returncode, done.stdout, done.stderr) == (0, "7\nclosed\n7\n", "")


def test_cleanup_may_be_called_again():
    done = run("from appliance import p4p; p4p.cleanup(); p4p.cleanup()")
    assert (done.returncode, done.stderr) == (0, "")
