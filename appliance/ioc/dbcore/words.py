"""Turns EPICS' messages into sentences: texts for its status codes, and file and line of its parser's complaints.

The libraries that we load come without most of EPICS' error texts: they know a status as ``Error (511,5)``. The texts
stand in the header files that are installed beside the libraries, and :func:`teach_words` gives them to EPICS.
"""

from __future__ import annotations

import ctypes
import difflib
import re
from collections.abc import Callable
from typing import Final

from appliance.errors import ApplianceError, ConfigurationError
from appliance.ioc.dbcore import _c
from appliance.ioc.dbcore.records import menu_choices, record_types

__all__ = [
    "PROTOCOL",
    "complaint",
    "device_address",
    "plain",
    "status_text",
    "teach_words",
    "without_colours",
]

_ANSI: Final = re.compile(r"\x1b\[[0-9;]*m")
_DEFINED: Final = re.compile(r"#\s*define\s+S_\w+\s+\(\s*(M_\w+)\s*\|\s*(\d+)\s*\)\s*/\*\s*(.*?)\s*\*/")
_MODULE: Final = re.compile(r"#\s*define\s+(M_\w+)\s+\(\s*(\d+)\s*<<\s*16\s*\)")
_WHERE: Final = re.compile(r'(?:path "(?P<path>[^"]*)"\s+)?file "(?P<file>[^"\n]+)" line (?P<line>\d+)')
_UNDEFINED: Final = re.compile(r"macro (\S+) is undefined|\$[({]([^,(){}\s]+),undefined[)}]")
"""As the error log says it, and as macLib writes it into the text that the parser then complains of."""
_WARNED: Final = re.compile(r"'(?P<file>[^'\n]+)' line (?P<line>\d+) has undefined macros")
_LINK_TYPE: Final = re.compile(r"(?:dbJLinkInit: )?Link type '(\w+)' not found")
_NO_DEVICE: Final = re.compile(
    r"Can't set '(?P<record>[^'\n]+)\.DTYP' to '(?P<device>[^'\n]*)' no such device support for '(?P<type>\w+)' record type.*"
)
_NO_TYPE: Final = re.compile(r"Record type '(?P<type>[^'\n]*)' for record '(?P<record>[^'\n]*)' not found")
_CHOICE: Final = re.compile(
    r"Can't set '[^'\n]*' to '(?P<choice>[^'\n]*)' (?:using menu (?P<menu>\w+))?.*illegal choice"
)
_NO_FIELD: Final = re.compile(r"\w+ record '[^'\n]*' doesn't have a field '(?P<field>[^'\n]*)'")
_SOURCE: Final = re.compile(r"\s*(\d+) \| ")
"""The text of the file below each complaint."""
_NO_ADDRESS: Final = re.compile(
    r"(?P<field>\S+): can't initialize link type \w+ with \"(?P<address>@[^\"\n]*)\" \(type INST_IO\)"
)
_MODULES: Final = (
    ("stream", "StreamDevice"),
    ("asyn", "asyn"),
    ("opcua", "OPC UA"),
    ("iocstats", "iocStats"),
    ("s7plc", "s7plc"),
    ("motor", "motor"),
)
"""Beginnings of device types in lower case, without blanks, and the modules that bring them."""
_TYPES: Final = {
    "motor": "motor",
    "alive": "alive",
    "busy": "busy",
    "asyn": "asyn",
    "scaler": "scaler",
    "mca": "mca",
    "sscan": "sscan",
    "optics": "optics",
    "epid": "std",
    "throttle": "std",
    "timestamp": "std",
    "luascript": "lua",
    "genSub": "genSub",
    **dict.fromkeys(("scalcout", "acalcout", "sCalcout", "aCalcout", "swait", "transform", "sseq"), "calc"),
}
"""Record types that are not of EPICS Base, and the modules that bring them."""
PROTOCOL: Final = "a protocol of StreamDevice, which this IOC does not have"
"""Part of what :func:`device_address` says."""
_WHAT_TO_DO: Final = (
    "bring it with 'libraries', or read an IOC that has it through a link; see 'What this IOC does not have'"
)
_LIBRARY: Final = (
    "a library of the site brings it, named with its .dbd under 'libraries' in the configuration file; or leave the record to an IOC "
    "that has it, and read that one through a link; see 'What this IOC does not have'"
)
_HINT: Final = re.compile(r"^\s*Did you mean \"([^\"\n]*)\"\?(?:  \([^\n]*\))?\n?", re.MULTILINE)
"""In the error log; what it is about is in the parser's output."""
_NEAR: Final = 0.7
"""How alike a proposal must be (0 to 1): EPICS proposes the nearest choice however far it is."""
_TEMPLATE: Final = re.compile(r"^line (?P<line>\d+): '(?P<near>[^'\n]*)'", re.MULTILINE)
# What repeats the place or the text of the file, which the sentence names once.
_NOISE: Final = re.compile(
    r"^\s*\d+ \| |^\(null\) record |^\s*at or before '|^Failed to load |^macLib: |has undefined macros$|^line \d+: '|^iocsh Error: |^dbReadCOM: |^\W*$"
    r"|^dbLoadRecords\(|^Substitution file error: Error while reading|,undefined[)}]"
)
_OWN: Final = {(511, 5): "field may not be modified"}
"""Our texts for codes whose EPICS text names an identifier of its source."""
_kept: Final[list[object]] = []
_MOST: Final = 4
"""The most complaints in one sentence."""


def _texts() -> dict[tuple[int, int], str]:
    found: dict[tuple[int, int], str] = {}
    modules: dict[str, int] = {}
    sources = []
    for header in sorted((_c.epics_base() / "include").glob("*.h")):
        source = header.read_text(encoding="latin-1")
        if "define" in source and "M_" in source:
            modules.update((name, int(number)) for name, number in _MODULE.findall(source))
            sources.append(source)
    for source in sources:
        for module, number, text in _DEFINED.findall(source):
            if module in modules and text:
                # In the middle of a sentence; abbreviations stay.
                start = text[0].lower() if text[1:2].islower() or text[1:2] == " " else text[0]
                found.setdefault((modules[module], int(number)), start + text[1:])
    return found | _OWN


def teach_words() -> None:
    """Give EPICS the texts that it lacks; the shell and the error log then use them too (errSymBld, errSymbolAdd)."""
    _c.errSymBld()
    for (module, number), text in _texts().items():
        if not status_text(module << 16 | number).startswith("Error ("):
            continue
        # EPICS keeps the pointer.
        kept = ctypes.create_string_buffer(text.encode())
        _kept.append(kept)
        _c.errSymbolAdd(module << 16 | number, ctypes.cast(kept, ctypes.c_char_p))


def status_text(status: int) -> str:
    """Return EPICS' text for a status code."""
    if status == -1:
        # What device support returns that has no code for its failure.
        return "its support reports a failure (-1)"
    buffer = ctypes.create_string_buffer(256)
    _c.errSymLookup(status, buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace").strip() or f"EPICS status {status}"


def without_colours(text: str) -> str:
    """Return a text without EPICS' colours."""
    return _ANSI.sub("", text)


def plain(text: str) -> str:
    """Return one line per message, without colours and blank lines."""
    lines = (line.rstrip() for line in _ANSI.sub("", text).splitlines())
    return "\n".join(line for line in lines if line and line.strip() != "ERROR:")


def complaint(said: str, why: str, file: str | None) -> ConfigurationError:
    """Make one sentence with file and line from EPICS' output while it read a file.

    Args:
        said: EPICS' output.
        why: what failed, used if the output has no information.
        file: the file that EPICS had to read; the place may be in an included file.

    """
    text = _with_hints(plain(said))
    where = _WHERE.search(text) or _WARNED.search(text)
    line = int(where["line"]) if where is not None else None
    if where is not None:
        file = _named(where.groupdict(), file)
    undefined = dict.fromkeys(one or other for one, other in _UNDEFINED.findall(text))
    told = [f"the macro {name} is not defined" for name in list(undefined)[:_MOST]]
    if where is None and (template := _TEMPLATE.search(text)) is not None:
        line = int(template["line"])
        if template["near"].isprintable() and "\ufffd" not in template["near"]:
            told.append(f"near {template['near']!r}")
    is_new = False
    for each in text.splitlines():
        if (source := _SOURCE.match(each)) is not None and is_new and line != int(source[1]):
            told[-1] += f" (line {source[1]})"
        is_new = is_new and source is None
        message = re.sub(r"^(?:(?:ERROR|WARNING):?\s*)+", "", each.strip()).strip()
        message = _LINK_TYPE.sub(
            r"this IOC has no links of type \1 (see 'What this IOC does not have')", message
        )
        message = device_address(_NO_DEVICE.sub(_no_device, _NO_TYPE.sub(_no_type, message)))
        if (
            message
            and "\ufffd" not in message
            and not _NOISE.search(message)
            and message not in told
            and len(told) < _MOST
        ):
            told.append(message.rstrip("."))
            is_new = True
    return ConfigurationError("; ".join(told) or why, file=file, line=line)


def _with_hints(text: str) -> str:
    """Put EPICS' proposals for wrong choices behind the complaints that they are about, if they are near."""
    hints = _HINT.findall(text)

    def proposed(found: re.Match[str]) -> str:
        if near := _near(found["choice"], hints):
            return f'{found.group()}; Did you mean "{near}"?'
        choices = _known(lambda: menu_choices(found["menu"])) if found["menu"] else []
        return f"{found.group()}; the choices are {', '.join(choices)}" if choices else found.group()

    def field(found: re.Match[str]) -> str:
        near = _near(found["field"], hints)
        return f'{found.group()}; Did you mean "{near}"?' if near else found.group()

    return _NO_FIELD.sub(field, _CHOICE.sub(proposed, _HINT.sub("", text)))


def _near(word: str, known: list[str]) -> str:
    """Return the word that was probably meant; empty if there is none."""
    lower = {each.lower(): each for each in reversed(known)}
    found = difflib.get_close_matches(word.lower(), lower, 1, _NEAR)
    return lower[found[0]] if found else ""


def _known(names: Callable[[], list[str]]) -> list[str]:
    try:
        return names()
    except ApplianceError:
        # A child has read the file, and here is no definition yet.
        return []


def _no_type(found: re.Match[str]) -> str:
    kind = found["type"]
    module = _TYPES.get(kind, "")
    near = "" if module else _near(kind, _known(record_types))
    hint = f"did you mean {near!r}? Otherwise " if near else ""
    of = f" of the module {module}" if module else ""
    return f"{found['record']}: this IOC has no record type {kind!r}{of}: {hint}{_LIBRARY}"


def _no_device(found: re.Match[str]) -> str:
    device = found["device"]
    known = device.lower().replace(" ", "")
    module = next((f" of {name}" for start, name in _MODULES if known.startswith(start)), "")
    if module:
        return f"{found['record']}: this IOC has no device support {device!r}{module}: {_WHAT_TO_DO}"
    hint = re.search(r"; Did you mean .*", found.group())
    return f"{found['record']}: {found['type']} records have no device support {device!r}{hint.group() if hint else f': {_WHAT_TO_DO}'}"


def device_address(message: str) -> str:
    """Say what EPICS means by a link that it cannot initialise: the address of a device in a record without DTYP for it."""
    found = _NO_ADDRESS.search(message)
    if found is None:
        return message
    is_protocol = re.match(r"@\s*[^\s(]+\.proto(?:col)?\b", found["address"]) is not None
    what = PROTOCOL if is_protocol else "the address of a device"
    return (
        f"{found['field']}: {found['address']!r} is {what}, and the record has no DTYP for it: {_WHAT_TO_DO}"
    )


def _named(where: dict[str, str], file: str | None) -> str:
    name, path = where["file"], where.get("path")
    if file is not None and (file == name or file.endswith("/" + name)):
        return file
    return name if path in (None, "", ".") or name.startswith("/") else f"{path}/{name}"
