"""``python -m bench [WORD ...]``: run all benchmarks, or those whose module's name holds one of the words."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path

from bench.table import show


def main() -> int:
    words = sys.argv[1:]
    rows = []
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.name.startswith("bench_") and (not words or any(word in module.name for word in words)):
            for row in importlib.import_module(f"bench.{module.name}").run():
                rows.append(row)
                print(show([row]).splitlines()[1], file=sys.stderr, flush=True)
    print(show(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
