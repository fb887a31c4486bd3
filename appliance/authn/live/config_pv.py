"""CERT:CONFIG: which keychain a daemon keeps, and until when it must be renewed."""
