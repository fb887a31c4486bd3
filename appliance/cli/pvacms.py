"""``pvacms``: the certificate management service."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the service; returns its exit status."""
    from appliance.cms.daemon import main as run

    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
