"""Runs a program, unchanged, with ``p4p`` meaning `appliance.p4p`.

All else is as ``python`` itself does it: arguments, the search path of modules, ``__main__``, exit status and tracebacks.
"""

from __future__ import annotations

import os
import pkgutil
import runpy
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader, SourcelessFileLoader
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Final

from appliance.p4p._alias import replace_p4p

__all__ = ["main"]

_USAGE: Final = """\
usage: python -m appliance.p4p PROGRAM [ARGUMENT ...]
       python -m appliance.p4p -m MODULE [ARGUMENT ...]
       python -m appliance.p4p -c COMMAND [ARGUMENT ...]

Run a Python program that was written for p4p: "import p4p" gives it appliance.p4p, which can use TLS. PROGRAM is a file,
a folder or a zip file with a __main__.py, or - for standard input. Options of Python itself stand before -m appliance.p4p.

  -h, --help     show this help and exit
  -V, --version  show the version and exit
"""


def main(arguments: list[str]) -> None:
    """Run the program that the command line names; end as it ends.

    Args:
        arguments: The command line after ``-m appliance.p4p``.
    """
    first = arguments[0] if arguments else ""
    if first in {"-h", "--help"}:
        sys.stdout.write(_USAGE)
        return
    if first in {"-V", "--version"}:
        from appliance.version import __version__

        sys.stdout.write(f"appliance.p4p {__version__}\n")
        return
    kind = first[:2] if first[:2] in {"-m", "-c"} else ""
    if kind:
        # As in Python itself, -mMODULE is the same as -m MODULE.
        given = [first[2:], *arguments[1:]] if first[2:] else arguments[1:]
        if not given:
            _refuse(f"{kind} needs an argument: {'the name of a module' if kind == '-m' else 'Python code'}")
        program, rest = given[0], given[1:]
    elif first.startswith("-") and first != "-":
        _refuse(f"unknown option {first}; options of Python itself stand before -m appliance.p4p")
    elif not first:
        _refuse("no program was named")
    else:
        program, rest = first, arguments[1:]
    replace_p4p()
    module = _fresh_main()
    if kind == "-m":
        # The folder of a module is the working folder, which is in sys.path already.
        sys.argv = ["-m", *rest]
        _run(lambda: _run_module(program, own_name=True))
    elif kind == "-c":
        sys.argv = ["-c", *rest]
        _search_first("")
        if sys.version_info >= (3, 13):
            # Its tracebacks show the lines of the command.
            import linecache

            linecache.cache["<string>"] = (len(program), None, program.splitlines(keepends=True), "<string>")
        _run(lambda: _execute(compile(program, "<string>", "exec", dont_inherit=True), module))
    elif program == "-":
        sys.argv = ["-", *rest]
        _search_first("")
        _run(lambda: _execute(compile(sys.stdin.read(), "<stdin>", "exec", dont_inherit=True), module))
    else:
        sys.argv = [program, *rest]
        path = os.path.join(os.getcwd(), program)  # noqa: PTH109, PTH118 - as Python does: . and .. stay
        if pkgutil.get_importer(path) is not None:
            _search_first(path)
            _run(lambda: _run_module("__main__", own_name=False))
        else:
            _search_first(str(Path(path).resolve().parent))
            _run(lambda: _execute(_code(path, module), module))


def _refuse(reason: str) -> None:
    sys.stderr.write(f"{_USAGE.split('Run a')[0]}\npython -m appliance.p4p: {reason}\n")
    raise SystemExit(2)


def _fresh_main() -> ModuleType:
    """Return an empty ``__main__`` that stays for the rest of the process: threads and pickles look it up at any time."""
    module = ModuleType("__main__")
    module.__dict__.update(__builtins__=sys.modules["builtins"], __annotations__={})
    sys.modules["__main__"] = module
    return module


def _search_first(folder: str) -> None:
    """Search modules in ``folder`` in place of the working folder, which ``-m appliance.p4p`` put first."""
    if not sys.flags.safe_path:
        sys.path[:1] = [folder]


def _code(path: str, module: ModuleType) -> CodeType:
    """Return the code of a file, and say in ``__main__`` where it is from."""
    loader: SourceFileLoader | SourcelessFileLoader
    loader = (SourcelessFileLoader if path.endswith(".pyc") else SourceFileLoader)("__main__", path)
    try:
        source = loader.get_data(path)
    except OSError as error:
        sys.stderr.write(
            f"{sys.executable}: can't open file {path!r}: [Errno {error.errno}] {error.strerror}\n"
        )
        raise SystemExit(2) from None
    module.__file__ = path
    module.__loader__ = loader
    module.__dict__["__cached__"] = None
    if isinstance(loader, SourcelessFileLoader):
        code = loader.get_code("__main__")
        assert code is not None
        return code
    return compile(source, path, "exec", dont_inherit=True)


def _execute(code: CodeType, module: ModuleType) -> None:
    exec(code, module.__dict__)  # noqa: S102 - the program of the user, who has started it


def _run_module(name: str, *, own_name: bool) -> None:
    # Python's own -m is this function, so messages, sys.argv and __spec__ are the same.
    runpy._run_module_as_main(name, own_name)  # type: ignore[attr-defined]


def _run(program: Callable[[], None]) -> None:
    """Call ``program``; what it raises is shown without the frames of this module."""
    try:
        program()
    except SystemExit:
        raise
    except BaseException as error:
        _hide_our_frames(error)
        raise


def _hide_our_frames(error: BaseException) -> None:
    shown = error.__traceback__
    while shown is not None and shown.tb_frame.f_code.co_filename == __file__:
        shown = shown.tb_next
    hook = sys.excepthook

    def show(kind: type[BaseException], value: BaseException, traceback: TracebackType | None) -> None:
        sys.excepthook = hook
        if value is error:
            # Also what a debugger looks at after the end (python -i).
            traceback = sys.last_traceback = value.__traceback__ = shown
        hook(kind, value, traceback)

    # Python calls it when the error has left the last frame; the exit status is Python's business then.
    sys.excepthook = show


if __name__ == "__main__":
    main(sys.argv[1:])
