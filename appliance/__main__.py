"""``appliance``: the one command for what is about the whole.

The tools and the quick start do not know of each other; here is the one place that knows both.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] == "quickstart":
        from appliance.quickstart.main import main as quickstart

        return quickstart(words[1:])
    from appliance.cli.main import main as tools

    return tools(words)


if __name__ == "__main__":
    sys.exit(main())
