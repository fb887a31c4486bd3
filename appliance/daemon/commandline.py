"""What the command lines of all programs share: the form of help, versions, completion, and errors.

Tools start in a tenth of a second, so nothing is imported here that parsing does not need.
"""

from __future__ import annotations

import argparse
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn

__all__ = [
    "FORMATS",
    "USAGE_ERROR",
    "Formatter",
    "Parser",
    "add_completion",
    "add_daemon_options",
    "add_version",
    "is_given",
]

USAGE_ERROR = 1
"""Exit status for a wrong command line in every program, as in PVXS's tools: 2 means interrupted."""
FORMATS = ("delta", "tree", "nt")

_FILES = frozenset({"FILE", "ACF", "DB", "DBD", "JSON", "KEYCHAIN", "st.cmd"})
"""Metavars that mean a file."""
_NAMES = frozenset({"pvname"})
"""Metavars that mean a PV."""

_BASH = """\
# The names of PVs that answered lately. readline completes what follows the last colon only.
_spva_names() {
  local line="${COMP_LINE:0:COMP_POINT}" file="${XDG_CACHE_HOME:-$HOME/.cache}/pva/names" name before=""
  local word="${line##*[[:space:]]}"
  [[ -r "$file" ]] || return 0
  [[ "$COMP_WORDBREAKS" == *:* && "$word" == *:* ]] && before="${word%"${word##*:}"}"
  while IFS= read -r name; do
    [[ "$name" == "$word"* ]] && printf '%s\\n' "${name#"$before"}"
  done < "$file"
}
"""
_ZSH = """\
_spva_names() {
  local file="${XDG_CACHE_HOME:-$HOME/.cache}/pva/names"
  local -a names
  [[ -r "$file" ]] && names=(${(f)"$(<$file)"})
  compadd -a names
}
"""


class Formatter(argparse.HelpFormatter):
    """Keeps text of several lines as written, for a terminal of 80 columns, and wraps other text.

    argparse reads the terminal's width for every option, and imports three compression libraries to do so.
    """

    def __init__(
        self, prog: str, indent_increment: int = 2, max_help_position: int = 24, width: int | None = None
    ) -> None:
        super().__init__(prog, indent_increment, max_help_position, _columns() if width is None else width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" not in text:
            return super()._fill_text(text, width, indent)
        return "".join([indent + line for line in text.splitlines(keepends=True)])


def _columns() -> int:
    try:
        wide = int(os.environ.get("COLUMNS", "")) or 80
    except ValueError:
        try:
            wide = os.get_terminal_size(1).columns or 80
        except (OSError, ValueError):
            wide = 80
    return max(wide - 2, 20)


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, whose meaning a new option could change."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        more.setdefault("formatter_class", Formatter)
        more.setdefault("allow_abbrev", False)
        super().__init__(*arguments, **more)

    def error(self, message: str) -> NoReturn:
        """Print the usage and the error, and exit."""
        self.print_usage(sys.stderr)
        self.exit(USAGE_ERROR, f"Error: {message}\n")


def is_given(options: argparse.Namespace, parser: argparse.ArgumentParser, name: str) -> bool:
    """Whether an option differs from its default."""
    return bool(getattr(options, name) != parser.get_default(name))


def add_version(parser: argparse.ArgumentParser, more: Callable[[], str] | None = None) -> None:
    """Add ``-V``; ``more`` gives a further line."""

    class Version(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
            from appliance.version import __version__

            release = ".".join(map(str, sys.version_info[:3]))
            lines = [f"Secure PVAccess appliance {__version__}", f"Python {release}"]
            if more is not None:
                lines.append(more())
            print("\n".join(lines))  # noqa: T201 - what was asked for
            parser.exit()

    parser.add_argument("-V", "--version", action=Version, nargs=0, help="Print version and exit.")


def add_completion(parser: argparse.ArgumentParser) -> None:
    """Add ``--print-completion``."""
    parser.add_argument(
        "--print-completion",
        action=_Completion,
        choices=("bash", "zsh", "tcsh"),
        help="Print a completion script for this shell and exit.",
    )


class _Completion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, _: Any, values: Any, __: Any = None) -> NoReturn:
        import shtab

        for action in _actions(parser):
            if action.dest == "format" and action.choices is None:
                # Not passed to argparse itself: an unknown format is a warning.
                action.choices = FORMATS
            if action.nargs == argparse.SUPPRESS:
                # argparse reads options first (parse_intermixed_args), and has set the positional ones aside.
                action.nargs = getattr(action, "save_nargs", "*")
            if action.metavar == "cert_id":
                # The only word that may stand in an identifier's place.
                action.choices = ("list",)
            if action.metavar in _FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif action.metavar in _NAMES:
                action.complete = {"bash": "_spva_names", "zsh": "_spva_names"}  # type: ignore[attr-defined]
        preamble: Any = {"bash": _BASH, "zsh": _ZSH}
        print(shtab.complete(parser, shell=values, preamble=preamble))  # noqa: T201 - what was asked for
        parser.exit()


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from _actions(sub)


def add_daemon_options(
    parser: argparse.ArgumentParser, *, config: str, verbose: str
) -> argparse._MutuallyExclusiveGroup:
    """Add the options that every daemon has: its configuration file, and what to do with it instead of serving.

    Args:
        parser: The daemon's parser.
        config: Help for ``--config``.
        verbose: Help for ``-v``.

    Returns:
        The group of options that exclude each other, for the daemon's own.
    """
    parser.add_argument("--config", metavar="FILE", help=config)
    parser.add_argument("-v", "--verbose", action="store_true", help=verbose)
    what = parser.add_mutually_exclusive_group()
    add = what.add_argument
    add("--check-config", action="store_true", help="check the configuration and exit")
    add("--print-config", action="store_true", help="print the effective configuration and exit")
    add("--print-schema", action="store_true", help="print the JSON schema of the file and exit")
    return what
