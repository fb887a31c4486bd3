"""The standard authenticator: a name that is only claimed, and that an administrator approves."""
