"""``python -m appliance.p4p``: the program runs as with python itself, and p4p is ours in it."""

import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PROGRAM = """\
import os, signal, sys
print(sys.argv, sys.path[0], __name__, __file__, __spec__ and __spec__.name, __package__, sorted(globals()))
def fail():
    raise KeyError("gone")
def fail_again():
    try:
        fail()
    except KeyError as error:
        raise ValueError("because of it") from error
what = sys.argv[1] if len(sys.argv) > 1 else ""
if what == "exit":
    sys.exit(int(sys.argv[2]))
if what == "words":
    sys.exit("a sentence")
if what == "fail":
    fail()
if what == "again":
    fail_again()
if what == "interrupt":
    os.kill(os.getpid(), signal.SIGINT)
    signal.pause()
"""


def run(folder: Path, *arguments: str, alias: bool = True, text: str = "", **environ: str):
    """Run python in ``folder``; with p4p meaning ours, or plainly."""
    runner = ["-m", "appliance.p4p"] if alias else []
    done = subprocess.run(
        [sys.executable, *runner, *arguments],
        cwd=folder,
        env={**os.environ, **environ},
        input=text,
        capture_output=True,
        check=False,
        text=True,
        timeout=100,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "wrong.py").write_text("import os\nthis is not python\n")
    (tmp_path / "helper.py").write_text("name = 'the one beside the program'\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "__main__.py").write_text(PROGRAM)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "__init__.py").write_text("")
    with zipfile.ZipFile(tmp_path / "program.zip", "w") as packed:
        packed.writestr("__main__.py", PROGRAM)
    return tmp_path


@pytest.mark.parametrize(
    "line",
    [
        "program.py",
        "program.py a -x --long -m",
        "./package/__main__.py",
        "program.py exit 3",
        "program.py words",
        "program.py fail",
        "program.py again",
        "program.py interrupt",
        "wrong.py",
        "missing.py",
        "package fail",
        "program.zip exit 4",
        "bare",
        "-m program a",
        "-m program fail",
        "-m program interrupt",
        "-m package exit 5",
        "-mprogram a",
        "-m bare",
        "-m missing",
        "-m missing.part",
        "-m wrong",
        "-c import+sys;print(sys.argv,sys.path[0],__name__,sorted(globals())) a b",
        "-c 1/0",
        "-c not+python",
    ],
)
def test_a_program_sees_and_shows_what_it_does_under_python_itself(folder, line):
    arguments = [part.replace("+", " ") for part in line.split()]
    assert run(folder, *arguments) == run(folder, *arguments, alias=False)


def test_an_interrupt_ends_the_program_with_the_signal(folder):
    assert run(folder, "program.py", "interrupt")[0] == -signal.SIGINT


def test_a_program_can_come_from_standard_input(folder):
    text = "import sys\nprint(sys.argv, sys.path[0], __name__)\n1/0\n"
    assert run(folder, "-", "a", text=text) == run(folder, "-", "a", alias=False, text=text)


def test_modules_beside_a_program_are_found_as_by_python_itself(folder, tmp_path):
    (folder / "linked").mkdir()
    (folder / "uses.py").write_text("import helper; print(helper.name)")
    (folder / "linked" / "uses.py").symlink_to(folder / "uses.py")
    assert run(folder / "linked", "uses.py")[1] == "the one beside the program\n"


def test_a_safe_path_stays_safe(folder):
    (folder / "uses.py").write_text("import helper")
    code, _, error = run(folder, "uses.py", PYTHONSAFEPATH="1")
    assert code == 1
    assert "No module named 'helper'" in error


def test_compiled_programs_run(folder):
    assert run(folder, "-m", "py_compile", "helper.py")[0] == 0
    [compiled] = (folder / "__pycache__").glob("helper.*.pyc")
    compiled.rename(folder / "helper.pyc")
    assert run(folder, "helper.pyc") == (0, "", "")


def test_the_prompt_after_a_failure_has_the_program(folder):
    done = subprocess.run(
        [sys.executable, "-i", "-m", "appliance.p4p", "program.py", "fail"],
        cwd=folder,
        input="import sys, traceback\nprint('kept', what, traceback.extract_tb(sys.last_traceback)[0].name)\n",
        capture_output=True,
        check=False,
        text=True,
        timeout=100,
    )
    assert "kept fail <module>" in done.stdout


def test_a_hook_that_the_program_has_set_gets_its_error_without_our_frames(folder):
    (folder / "hook.py").write_text(
        "import sys, traceback\n"
        "sys.excepthook = lambda kind, value, tb: print(kind.__name__, len(traceback.extract_tb(tb)))\n"
        "1/0\n"
    )
    assert run(folder, "hook.py") == (1, "ZeroDivisionError 1\n", "")


def test_a_traceback_shows_only_the_program(folder):
    error = run(folder, "program.py", "fail")[2]
    assert "appliance" not in error
    assert "runpy" not in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no program was named"),
        (["-m"], "-m needs an argument"),
        (["-c"], "-c needs an argument"),
        (["-u", "program.py"], "options of Python itself stand before -m appliance.p4p"),
    ],
)
def test_a_wrong_command_line_is_told(folder, arguments, words):
    code, out, error = run(folder, *arguments)
    assert (code, out) == (2, "")
    assert error.startswith("usage: python -m appliance.p4p")
    assert words in error


def test_help_and_version(folder):
    assert run(folder, "--help")[1].startswith("usage: python -m appliance.p4p PROGRAM")
    assert run(folder, "-V")[1].startswith("appliance.p4p ")


# --- what p4p is in the program


def out_of(folder: Path, program: str, **environ: str) -> list[str]:
    (folder / "asks.py").write_text(program)
    code, out, error = run(folder, "asks.py", **environ)
    assert code == 0, error
    return out.splitlines()


def test_p4p_is_ours_though_p4p_is_installed(folder):
    assert out_of(folder, "import p4p; print(p4p.__name__)") == ["appliance.p4p"]


def test_p4p_is_ours_if_p4p_is_not_installed(folder):
    # -S leaves out site-packages, and p4p with it; the appliance and what it needs come from the path.
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [
            sys.executable,
            "-S",
            "-m",
            "appliance.p4p",
            "-c",
            "import p4p.version; print(p4p.__name__, p4p.version)",
        ],
        cwd=root,
        capture_output=True,
        check=False,
        text=True,
        timeout=100,
    )
    assert done.stdout == "appliance.p4p 4.3.0\n", done.stderr


NAMES = [
    "nt",
    "nt.scalar",
    "client",
    "client.thread",
    "client.asyncio",
    "client.raw",
    "server",
    "server.thread",
]
NAMES += ["server.asyncio", "server.raw", "rpc", "util", "wrapper", "_p4p", "version"]


def test_each_module_is_one_object_under_both_names(folder):
    program = f"""
import importlib, sys
for name in {NAMES!r}:
    first = importlib.import_module("p4p." + name)
    second = importlib.import_module("appliance.p4p." + name)
    print(name, first is second, sys.modules["p4p." + name] is first, first.__spec__.name)
"""
    assert out_of(folder, program) == [f"{name} True True appliance.p4p.{name}" for name in NAMES]


def test_the_other_order_of_imports_is_as_good(folder):
    program = "import appliance.p4p.client.thread as ours, p4p.client.thread as theirs; print(ours is theirs)"
    assert out_of(folder, program) == ["True"]


def test_the_version_stays_a_version_when_its_module_is_imported(folder):
    program = "import p4p.version, p4p; print(p4p.version, p4p.version >= (4, 3), p4p.version.is_release)"
    assert out_of(folder, program) == ["4.3.0 True True"]


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("gw", "this project's gateway is the command pvagw"),
        ("asLib", "the gateway pvagw applies access security files"),
        ("asLib.pvlist", "the gateway pvagw applies access security files"),
        ("disect", "tracemalloc"),
        ("client.cothread", "use p4p.client.thread, or p4p.client.asyncio"),
        ("server.cothread", "use server.thread or server.asyncio"),
        ("test", "here p4p is appliance.p4p, which has no such module"),
        ("_gw", "here p4p is appliance.p4p, which has no such module"),
    ],
)
def test_what_is_not_ours_says_so_and_never_comes_from_p4p_itself(folder, module, words):
    program = f"""
try:
    import p4p.{module}
except ImportError as error:
    print(error)
"""
    [said] = out_of(folder, program)
    assert words in said


def test_p4p_that_is_imported_already_is_not_replaced(folder):
    program = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "_Finder"]
for name in [name for name in sys.modules if name.split(".")[0] == "p4p"]:
    del sys.modules[name]
import p4p
from appliance.p4p import replace_p4p
try:
    replace_p4p()
except RuntimeError as error:
    print(p4p.__name__, error)
"""
    [said] = out_of(folder, program)
    assert said.startswith("p4p p4p itself is imported already")
    assert "python -m appliance.p4p PROGRAM" in said


def test_one_line_replaces_p4p_too(folder):
    (folder / "line.py").write_text(
        "from appliance.p4p import replace_p4p\n"
        "replace_p4p(); replace_p4p()\n"
        "import p4p, sys\n"
        "print(p4p.__name__, sum(type(f).__name__ == '_Finder' for f in sys.meta_path))\n"
    )
    assert run(folder, "line.py", alias=False)[1] == "appliance.p4p 1\n"


LOGGED = """
import logging, os
logging.basicConfig(level=logging.DEBUG)
import p4p
from p4p.client.thread import Context
from p4p.nt import NTScalar
from p4p.server import Server
from p4p.server.thread import SharedPV
if "SET" in os.environ:
    p4p.set_debug(logging.DEBUG)
with Server(providers=[{"quiet:pv": SharedPV(nt=NTScalar("d"), initial=1.5)}], isolate=True) as server:
    with Context("pva", conf=server.conf(), useenv=False) as ctxt:
        print(float(ctxt.get("quiet:pv", timeout=60)))
"""


def test_a_program_that_logs_everything_does_not_see_each_message_on_the_wire(folder):
    (folder / "logged.py").write_text(LOGGED)
    status, out, err = run(folder, "logged.py")
    assert (status, out) == (0, "1.5\n")
    assert "appliance.transport" not in err
    assert "appliance.client" not in err


@pytest.mark.parametrize("environ", [{"SET": "1"}, {"PVXS_LOG": "*=DEBUG"}])
def test_set_debug_and_pvxs_log_show_them_all_the_same(folder, environ):
    (folder / "logged.py").write_text(LOGGED)
    status, out, err = run(folder, "logged.py", **environ)
    assert (status, out) == (0, "1.5\n")
    assert "appliance.transport" in err
    assert "appliance.client" in err


CHILDREN = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor

def work(number):
    import p4p
    return number, p4p.__name__

def tell(queue):
    queue.put(work(7))

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    queue = context.Queue()
    child = context.Process(target=tell, args=(queue,))
    child.start()
    print(queue.get())
    child.join()
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        print(*pool.map(work, [8, 9]))
"""


@pytest.mark.parametrize("way", ["spawn", "forkserver", "fork"])
def test_children_of_multiprocessing_have_ours_too(folder, way):
    (folder / "children.py").write_text(CHILDREN)
    code, out, error = run(folder, "children.py", way)
    assert (code, out, error) == (
        0,
        "(7, 'appliance.p4p')\n(8, 'appliance.p4p') (9, 'appliance.p4p')\n",
        "",
    )


def test_children_have_ours_though_multiprocessing_was_there_first(folder):
    (folder / "first.py").write_text(
        "import multiprocessing.util\nfrom appliance.p4p import replace_p4p\nreplace_p4p()\n"
        + CHILDREN.replace("sys.argv[1]", "'spawn'")
    )
    assert run(folder, "first.py", alias=False)[1].startswith("(7, 'appliance.p4p')\n")


def test_an_empty_program_starts_quickly(folder):
    # Children of multiprocessing pass this way as well. Times say little on a busy machine; modules do not lie.
    program = (
        "import sys; print([name for name in ('asyncio', 'numpy', 'logging', 'ssl') if name in sys.modules])"
    )
    assert out_of(folder, program) == ["[]"]


def test_pytest_runs_tests_for_p4p_with_ours(folder):
    (folder / "test_it.py").write_text(
        "import p4p\n\ndef test():\n    assert p4p.__name__ == 'appliance.p4p'\n"
    )
    code, out, _ = run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:iam", "test_it.py")
    assert (code, "1 passed" in out) == (0, True)
