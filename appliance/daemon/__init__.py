"""What every daemon needs: the main loop, signals, readiness, watchdog, logging and the audit log."""
