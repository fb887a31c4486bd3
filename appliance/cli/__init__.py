"""Command-line tools. Each module imports only what its own tool uses."""
