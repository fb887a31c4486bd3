"""SharedPV whose handlers run in threads, and may block."""
