"""``pvxcert -S``: shows and sets the schedule of a certificate."""
