"""Makes ``p4p`` in the imports of this process mean `appliance.p4p`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import CodeType, ModuleType
from typing import Final

from appliance.p4p._p4p import keep_quiet

__all__ = ["replace_p4p"]

_OURS: Final = "appliance.p4p"
_CHILDREN: Final = "multiprocessing.util"


def replace_p4p() -> None:
    """Let ``p4p`` in all later imports of this process mean `appliance.p4p`, whether p4p is installed or not.

    ``python -m appliance.p4p`` does this before it runs a program. A program that is started in another way, for example by a
    notebook server, calls it as its first line. Each module has one object under both names. Children that `multiprocessing`
    starts by ``spawn`` or ``forkserver`` do the same; other new processes do not.

    Raises:
        RuntimeError: p4p itself is imported already.

    ::

        from appliance.p4p import replace_p4p

        replace_p4p()
        from p4p.client.thread import Context
    """
    loaded = sys.modules.get("p4p")
    if loaded is not None and loaded.__name__ != _OURS:
        raise RuntimeError(
            "p4p itself is imported already, so it cannot be replaced: call replace_p4p() before the first import of p4p, "
            "or run the program with: python -m appliance.p4p PROGRAM"
        )
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    # What is loaded is known under both names at once. Otherwise an import of p4p.version would, as imports of submodules do,
    # put the module into the place of the attribute p4p.version, which is the version itself.
    importlib.import_module(_OURS)
    for name, module in list(sys.modules.items()):
        if name == _OURS or name.startswith(_OURS + "."):
            sys.modules[name.removeprefix("appliance.")] = module
    sys.meta_path.insert(0, _Finder())
    if _CHILDREN in sys.modules:
        _replace_in_children(sys.modules[_CHILDREN])


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == _CHILDREN:
            return _watched(PathFinder.find_spec(fullname, path))
        if fullname != "p4p" and not fullname.startswith("p4p."):
            return None
        ours = importlib.util.find_spec(f"appliance.{fullname}")
        if ours is None:
            # Another finder must not be asked: it could take this one module from p4p itself.
            raise ModuleNotFoundError(
                f"No module named {fullname!r}: here p4p is {_OURS}, which has no such module", name=fullname
            )
        folders = ours.submodule_search_locations
        spec = ModuleSpec(fullname, self, origin=ours.origin, is_package=folders is not None)
        if folders is not None:
            spec.submodule_search_locations = list(folders)
        spec.has_location = ours.has_location
        return spec

    def exec_module(self, module: ModuleType) -> None:
        """Put our module into the place of the empty one that the import system has made."""
        name = module.__name__
        sys.modules[name] = importlib.import_module(f"appliance.{name}")
        if name.startswith(("p4p.client", "p4p.server")):
            # Not before: logging would make the start of each program longer.
            keep_quiet()

    def get_code(self, fullname: str) -> CodeType | None:
        """Return the code for ``python -m``."""
        ours = importlib.util.find_spec(f"appliance.{fullname}")
        code: CodeType | None = ours.loader.get_code(ours.name) if ours is not None and ours.loader else None  # type: ignore[attr-defined]
        return code


def _watched(spec: ModuleSpec | None) -> ModuleSpec | None:
    """Let `_replace_in_children` follow the execution of the module."""
    if spec is not None and spec.loader is not None:
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _replace_in_children(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
    return spec


def _replace_in_children(util: ModuleType) -> None:
    """Let the interpreters that `multiprocessing` starts run what they run under ``-m appliance.p4p``.

    All of them are started with these options and a ``-c`` after them. A child without this would silently use p4p itself, over
    plain TCP.
    """
    options = util._args_from_interpreter_flags
    util.__dict__["_args_from_interpreter_flags"] = lambda: [*options(), "-m", _OURS]
