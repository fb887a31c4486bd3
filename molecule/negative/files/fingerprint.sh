#!/bin/bash
# One line for everything that a deployment could change on a host.
find /etc /opt /usr/local /var/lib/spva /home -xdev \( -name '*.pyc' -o -name .ansible \) -prune -o -printf '%p %m %u %g %s %l\n' 2>/dev/null | sort | sha256sum
dpkg-query --show | sha256sum
systemctl list-unit-files --no-legend | sort | sha256sum
