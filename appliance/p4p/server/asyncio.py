"""SharedPV whose handlers run on an event loop, and may be coroutines."""
