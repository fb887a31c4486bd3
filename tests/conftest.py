"""For all tests."""

from __future__ import annotations

import signal

# A run that was started in the background ignores SIGINT, and every tool that a test interrupts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
