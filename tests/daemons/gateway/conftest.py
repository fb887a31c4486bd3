"""The gateway as a process."""

import os

# Network namespaces can only be made by root.
collect_ignore = [] if os.geteuid() == 0 else ["test_relay_namespaces.py"]
