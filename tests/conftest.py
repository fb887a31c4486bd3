"""For all tests."""

from __future__ import annotations

import signal

from hypothesis import settings

# A run that was started in the background ignores SIGINT, and every tool that a test interrupts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long one example takes depends on the machine and on what else runs there.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
