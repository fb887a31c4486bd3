"""The keeper of one keychain: follows its certificate, and requests what the plan says."""
