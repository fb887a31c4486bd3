"""A TLS 1.3 engine over memory BIOs; contexts, stapling and peer credentials. Does no input or output."""
