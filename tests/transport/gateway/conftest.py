"""Only root can make network namespaces."""

from __future__ import annotations

import os

collect_ignore = [] if os.geteuid() == 0 else ["test_namespaces.py"]
