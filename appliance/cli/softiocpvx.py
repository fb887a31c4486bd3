"""``softIocPVX``: see :mod:`appliance.ioc.daemon`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from appliance.ioc.daemon import main as _main

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the IOC."""
    return _main(argv)


if __name__ == "__main__":
    sys.exit(main())
