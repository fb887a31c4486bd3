"""What goes to an operator's terminal: history and completion by readline, and texts that cannot command it."""

from __future__ import annotations

from typing import Final, Protocol

from appliance.ioc.dbcore.streams import visible as plain

__all__ = ["Completes", "plain", "prepare_editing"]

_LINES: Final = 1000


class Completes(Protocol):
    """Completes words."""

    def complete(self, text: str, state: int, line: str) -> str | None:
        """Return completion number ``state`` of ``text`` in ``line``."""


def prepare_editing(completer: Completes, history: int | None = None) -> None:
    """Load readline; ``input`` uses it from then on.

    Args:
        completer: Completes words.
        history: The number of lines that are kept.
    """
    try:
        import readline
    except ImportError:
        return

    readline.set_completer(lambda text, state: completer.complete(text, state, readline.get_line_buffer()))
    # A record's name can contain colons, dots and brackets.
    readline.set_completer_delims(" \t\n\"'(),<>")
    is_libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
    if not is_libedit:
        readline.parse_and_bind("set enable-bracketed-paste off")
    readline.set_history_length(_LINES if history is None else history)
    readline.set_auto_history(True)
