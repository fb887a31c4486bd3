"""The standard authenticator: the name is only claimed, and an administrator approves it."""
