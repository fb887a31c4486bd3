"""CERT:SCHEDULE: shows and sets the schedule of a certificate."""
