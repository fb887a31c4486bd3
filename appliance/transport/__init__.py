"""The only sockets: TCP, TLS over TCP and UDP, with flow control."""
