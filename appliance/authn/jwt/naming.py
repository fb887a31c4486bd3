"""Make a certificate's common name from a token's `sub`, and know the names that no token may obtain.

A common name appears in access security files, in logs and on operators' screens. So the default alphabet is what an
account name needs; it has no character that one of these readers could take for syntax.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Final

from appliance.errors import TokenRefused

__all__ = ["ReservedNames", "common_name", "rule_is_valid", "skeleton"]

_ALPHABET: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._@+-")
_NEVER: Final = frozenset(",;=/\\\"<>#*|&$`'(){}[]!?^%~:")
"""Characters that have a meaning in DNs, access security files, shells or log readers."""
_MAX_OCTETS: Final = 64

# Letters of other scripts that look like ASCII letters in the fonts of terminals and browsers. Names are case-folded
# first, so only small letters are listed. NFKC has already replaced full-width, mathematical and other styled forms.
_LOOKALIKES: Final = str.maketrans(
    dict(
        zip(
            "\u0430\u0441\u0501\u0435\u04bb\u0456\u0458\u043a\u04cf\u043c\u043d\u043e\u0440\u051b\u0433\u0455"
            "\u0442\u0443\u0475\u0461\u0445\u0432\u03b1\u03b5\u03b9\u03ba\u03bd\u03bf\u03c1\u03c4\u03c5\u03c7"
            "\u03c9\u03b3\u03b7\u0131\u0237\u0261\u0251\u029c\u1d0f\u1d1c\u1d20\u1d21\u1d22\u0578\u057d\u0585\u0570"
            "\u0581\u0566\u2013\u2014\u2010\u2011\u2212",
            "acdehijklmhopqrstyvwxbaeikvoptuxwynijgahouvwznuohgq-----",
            strict=True,
        )
    )
)
_LATIN_WITHOUT_PARTS: Final = (
    "\u00e6\u00c6\u0153\u0152\u00f8\u00d8\u0111\u0110\u0142\u0141\u00fe\u00de\u00f0\u00df"
)
_ALIKE_IN_ASCII: Final = str.maketrans(
    {
        "0": "o",
        "\u00f8": "o",
        "\u0111": "d",
        "\u0142": "l",
        "\u00f0": "o",
        "1": "l",
        "i": "l",
        "|": "l",
        "5": "s",
    }
)


def skeleton(name: str) -> str:
    """Return what `name` looks like. A person can confuse two names that have the same skeleton."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    bare = "".join(c for c in unicodedata.normalize("NFD", folded) if not unicodedata.combining(c))
    visible = "".join(c for c in bare if unicodedata.category(c) not in {"Cf", "Zs", "Cc"})
    return visible.translate(_LOOKALIKES).translate(_ALIKE_IN_ASCII).replace("rn", "m").replace("vv", "w")


class ReservedNames:
    """Names that no token may obtain: administrators, the CMS's and the CA's own; also names that look the same."""

    __slots__ = ("_skeletons",)

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._skeletons = frozenset(skeleton(name) for name in names)

    def __contains__(self, name: str) -> bool:
        return skeleton(name) in self._skeletons


def rule_is_valid(rule: str) -> bool:
    """Whether `rule` is literal text with exactly one ``*``."""
    return rule.count("*") == 1


def common_name(
    subject: str, *, rule: str, extra_characters: str, non_ascii: bool, reserved: ReservedNames
) -> str:
    """Return the common name for `subject`.

    `rule` is matched against the whole subject; the part at its ``*`` becomes the name (``*`` keeps all, ``*@example.org``
    keeps the account, and only of that domain). Besides ASCII letters, digits and ``._@+-`` only `extra_characters` are
    allowed, and with `non_ascii` also letters and digits of other scripts, but never two scripts in one name. A name
    starts with a letter or a digit.

    Raises:
        TokenRefused: The subject gives no acceptable name.
    """
    prefix, _, suffix = rule.partition("*")
    if len(subject) < len(prefix) + len(suffix) or not (
        subject.startswith(prefix) and subject.endswith(suffix)
    ):
        raise TokenRefused("sub_rule")
    name = subject[len(prefix) : len(subject) - len(suffix)]
    if not 0 < len(name.encode("utf-8", "surrogatepass")) <= _MAX_OCTETS:
        raise TokenRefused("sub_rule")
    allowed = _ALPHABET | (frozenset(extra_characters) - _NEVER)
    for char in name:
        if char not in allowed and not (
            non_ascii and ord(char) > 127 and unicodedata.category(char)[0] in "LN"
        ):
            raise TokenRefused("sub_characters")
    if not name[0].isalnum() or name[-1] == " ":
        raise TokenRefused("sub_characters")
    if not name.isascii():
        if unicodedata.normalize("NFKC", name) != name:
            raise TokenRefused("sub_not_normalised")
        if len({_script(char) for char in name if char.isalpha()}) > 1:
            raise TokenRefused("sub_mixed_scripts")
        if any(_script(char) == "LATIN" and not _is_plain_latin(char) for char in name):
            raise TokenRefused("sub_characters")
    if name in reserved or subject in reserved:
        raise TokenRefused("sub_reserved")
    return name


def _is_plain_latin(char: str) -> bool:
    # Letters of living alphabets. Phonetic letters are not allowed: nearly every ASCII letter has a look-alike there.
    return unicodedata.normalize("NFD", char)[0].isascii() or char in _LATIN_WITHOUT_PARTS


def _script(char: str) -> str:
    # The standard library has no script property. The first word of a letter's Unicode name serves for all that matters.
    return unicodedata.name(char, "UNKNOWN").split(" ", 1)[0]
