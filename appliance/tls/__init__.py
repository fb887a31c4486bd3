"""A TLS 1.3 engine over memory BIOs; contexts, stapling and peer credentials. It does no input or output."""
