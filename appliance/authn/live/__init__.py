"""The authenticators' daemons: they follow their certificates and renew them in time."""
