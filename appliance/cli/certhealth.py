"""``pvxcert -H`` and ``-M``: health and metrics of a certificate service."""
