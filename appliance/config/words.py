"""The words for yes and no in variables and options, in one place."""

from __future__ import annotations

from typing import Final

__all__ = ["YES_NO", "read_yes_no"]

YES_NO: Final = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
"""As PVXS reads them. A setting that has to know more words, as its reference does, adds them to these."""


def read_yes_no(text: str) -> bool | None:
    """Return what a word means, in capital or small letters; None if it is neither yes nor no."""
    return YES_NO.get(text.strip().lower())
