"""Write the tables of variables in docs/reference/ansible.md: ``python -m tests.helpers.ansible_page``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/ansible.md"
SECTION = re.compile(r"^## Role (?P<role>\w+)\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
"""What is generated: each role's section, up to the next heading."""


def rows(options: dict[str, Any], depth: int = 0) -> Iterator[str]:
    """Yield one row of the table for each variable, and for each key below it."""
    for name, spec in options.items():
        kind = f"list of {spec['elements']}" if spec["type"] == "list" else spec["type"]
        meaning = " ".join(spec["description"].split())
        if "choices" in spec:
            meaning += f" One of {', '.join(spec['choices'])}."
        if spec.get("no_log"):
            meaning += " Secret."
        cells = ["&nbsp;&nbsp;" * depth + f"`{name}`", kind, _default(spec), meaning.replace("|", "&#124;")]
        yield f"| {' | '.join(cells)} |"
        yield from rows(spec.get("options", {}), depth + 1)


def _default(spec: dict[str, Any]) -> str:
    if spec.get("required"):
        return "required"
    if "default" not in spec:
        return ""
    text = yaml.safe_dump(spec["default"], default_flow_style=True, width=float("inf"))
    text = text.removesuffix("...\n").strip().replace("|", "&#124;")
    return f"`{text}`"


def section(role: str) -> str:
    """Return the section of one role, as its argument_specs.yml describes it."""
    main = yaml.safe_load((ROOT / "roles" / role / "meta/argument_specs.yml").read_text())["argument_specs"][
        "main"
    ]
    text = f"## Role {role}\n\n{' '.join(main['description'].split())}\n"
    if main["options"]:
        text += (
            "\n| variable | type | default | meaning |\n|---|---|---|---|\n"
            + "\n".join(rows(main["options"]))
            + "\n"
        )
    return text


def page(text: str) -> str:
    """Return ``text`` with its generated sections as they should be."""
    return SECTION.sub(lambda found: f"{section(found['role'])}\n", text).rstrip("\n") + "\n"


def documented(text: str) -> list[str]:
    """Return the roles that have a section, in the order of the page."""
    return [found["role"] for found in SECTION.finditer(text)]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
