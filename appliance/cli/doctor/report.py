"""What the checks found, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from appliance.daemon.names import identified

__all__ = ["NOTE", "OK", "PROBLEM", "WARNING", "Finding", "Report"]

OK: Final = "ok"
NOTE: Final = "note"
"""Nothing is wrong, but not everybody expects it."""
WARNING: Final = "warning"
"""It works, but may not always."""
PROBLEM: Final = "problem"

_OWN: Final = ("chain", "clock", "expiry", "usage", "status")
"""Checks whose problems concern this end's own certificate."""


class Finding(NamedTuple):
    """One result of one check."""

    check: str
    """``release``, ``configuration``, ``keychain``, ``password``, ``chain``, ``expiry``, ``usage``, ``status``, ``clock``,
    ``ports``, ``interfaces``, ``search``, ``name servers``, ``servers``, ``pv``, ``programs``."""
    level: str
    what: str
    why: str = ""
    do: str = ""


class Report:
    """Collects findings."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def ok(self, check: str, what: str) -> None:
        """Report that all is well."""
        self._add(check, OK, what)

    def note(self, check: str, what: str, why: str = "", do: str = "") -> None:
        """Report something worth knowing."""
        self._add(check, NOTE, what, why, do)

    def warning(self, check: str, what: str, why: str, do: str) -> None:
        """Report that something works, but may not always."""
        self._add(check, WARNING, what, why, do)

    def problem(self, check: str, what: str, why: str, do: str) -> None:
        """Report that something does not work."""
        self._add(check, PROBLEM, what, why, do)

    def _add(self, check: str, level: str, what: str, why: str = "", do: str = "") -> None:
        self.findings.append(Finding(check, level, identified(what), identified(why), do))

    def own_fault(self) -> str:
        """Return the problem that keeps this end's certificate from being accepted; empty if there is none."""
        return next(
            (
                f"{each.check}: {each.what}"
                for each in self.findings
                if each.level == PROBLEM and each.check in _OWN
            ),
            "",
        )

    def count(self, level: str) -> int:
        """Return the number of findings of this level."""
        return sum(finding.level == level for finding in self.findings)

    def lines(self) -> Iterable[str]:
        """Yield the report for people: one line for each finding, below it why and what to do."""
        for finding in self.findings:
            label = finding.level.upper() if finding.level == PROBLEM else finding.level
            yield f"{label:<8} {finding.check}: {finding.what}"
            if finding.why:
                yield f"         why: {finding.why}"
            if finding.do:
                yield f"         do:  {finding.do}"
        problems, warnings = self.count(PROBLEM), self.count(WARNING)
        yield f"{_number(problems, 'problem')}, {_number(warnings, 'warning')}"

    def plain(self) -> dict[str, object]:
        """Return the report for programs."""
        return {
            "problems": self.count(PROBLEM),
            "warnings": self.count(WARNING),
            "findings": [finding._asdict() for finding in self.findings],
        }


def _number(count: int, noun: str) -> str:
    return f"{count or 'no'} {noun}{'' if count == 1 else 's'}"
