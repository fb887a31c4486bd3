"""The words behind the name in a link, such as ``PP`` and ``MS``: EPICS ignores those that it does not know, and some that it knows.

EPICS looks for its words anywhere in the text (dbParseLink), so it reads ``CPX`` as ``CP``. Of words that contradict each other it uses one,
whatever their order.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["FORWARD", "INPUT", "OUTPUT", "ignored"]

INPUT, OUTPUT, FORWARD = range(14, 17)
"""What a link is for, with EPICS' numbers (DBF_INLINK and those after it)."""

_PROCESS: Final = ("NPP", "CPP", "PP", "CA", "CP")
"""In the order in which EPICS looks for them; the first one that is there counts."""
_SEVERITY: Final = ("NMS", "MSI", "MSS", "MS")
_WORDS: Final = re.compile("|".join((*_PROCESS, *_SEVERITY)))
_USUAL: Final = frozenset(("PP", "NPP", "NMS"))
"""Words without effect in forward links that many databases have there."""


def ignored(kind: int, text: str) -> str:
    """Say which words of a link EPICS ignores; empty if there are none.

    Args:
        kind: What the link is for.
        text: The link as it is written.
    """
    text = text.strip()
    if text.startswith(("{", "[")):
        end = "}" if text[0] == "{" else "]"
        at = text.rfind(end)
        if at < 0 or at + 1 == len(text):
            return ""
        return (
            f"{text[at + 1 :].strip()!r} follows the last {end}, so EPICS takes all of it for the name of a PV: remove it; "
            "what a PVA link does is said inside, as in {pva:{pv:NAME, proc:CP, sevr:true}}"
        )
    if text[:1] in ("", "@", "#") or " " not in text:
        return ""
    name, _, given = text.partition(" ")
    if _is_number(name) and not _is_number(text):
        return f"{given.strip()!r} follows a number, so EPICS takes {name} for the name of a PV: remove it"
    return "; ".join(_about(kind, given))


def _about(kind: int, given: str) -> list[str]:
    told = []
    words: list[str] = []
    for word in given.split():
        found = _WORDS.findall(word)
        if "".join(found) != word:
            read = f"EPICS reads {' '.join(found)} in it" if found else "EPICS ignores it"
            hint = f"; write {word.upper()}" if _WORDS.fullmatch(word.upper()) else ""
            told.append(f"{word!r} is no modifier of a link, and {read}{hint}")
        words += found
    for group in (_PROCESS, _SEVERITY):
        here = [word for word in words if word in group]
        used = [word for word in group if word in here]
        if len(used) > 1:
            told.append(f"{' and '.join(used)} contradict each other, and EPICS uses {used[0]}")
        elif len(here) > 1:
            told.append(f"{used[0]} is given {len(here)} times")
        # EPICS itself tells of CP and CPP in an output.
        if kind == FORWARD and used and used[0] != "CA" and used[0] not in _USUAL:
            told.append(f"{used[0]} has no effect in a forward link")
    return told


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return re.fullmatch(r"[-+]?0[xX][0-9a-fA-F]+", text) is not None
    return True
