"""Find environment variables that look like ours but that nothing reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from appliance.cli.doctor.report import Report

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["check_spelling"]

_OURS: Final = ("EPICS_PVA", "EPICS_AUTH", "EPICS_CERT_AUTH", "EPICS_ADMIN_TLS")
"""A variable with such a beginning is meant for a program of Secure PVAccess."""
_OTHERS: Final = (
    "EPICS_CA",
    "EPICS_HOST_",
    "EPICS_BASE",
    "EPICS_IOC_",
    "EPICS_TIME",
    "EPICS_TS_",
    "EPICS_DB_",
)
"""EPICS Base, Channel Access and build systems have variables of their own."""
_ALIKE: Final = 0.88
"""From this similarity on (0 to 1, difflib), one name is taken for a typing error of the other."""


def check_spelling(report: Report, environ: Mapping[str, str]) -> None:
    """Report variables that nothing reads: a misspelt one has no effect, and nothing else says so."""
    import difflib

    # Only the name is shown: the value of a misspelt variable may be a secret.
    strangers = [name for name in environ if "EPICS" in name or "_PVA" in name or name.startswith("EPIC_")]
    if not strangers:
        return
    known = _known()
    for name in sorted(set(strangers) - known):
        if name.startswith(_OTHERS):
            continue
        close = difflib.get_close_matches(name, known, 1, _ALIKE)
        if close:
            # An existing value may be the right one: never tell anybody to overwrite it.
            is_set = close[0] in environ
            report.warning(
                "configuration",
                f"no program reads {name}",
                f"it looks like {close[0]}, which {'is set as well, and is used' if is_set else 'is not set'}",
                f"unset {name}" if is_set else f'rename it: export {close[0]}="${name}"; unset {name}',
            )
        elif name.startswith(_OURS):
            report.warning(
                "configuration",
                f"no program reads {name}",
                "no variable of Secure PVAccess has this name, so it has no effect",
                "look the right name up in the configuration reference, or unset it",
            )


def _known() -> set[str]:
    from appliance.authn.settings import VARIABLES as AUTHENTICATORS
    from appliance.config.pva import variables

    known = {*variables(), *AUTHENTICATORS}
    try:
        from appliance.cms.options import VARIABLES as SERVICE
    except ImportError:  # The certificate service is an extra; without it nothing here reads its variables.
        return known
    return known | SERVICE
