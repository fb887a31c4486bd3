#!/bin/bash
# One line for each kind of thing that a deployment could change on a host: names, owners, modes, sizes and links of files;
# their contents; accounts; packages; units.
places=(/etc /opt /usr/local /var/lib/spva /home /root)
leave=(\( -name '*.pyc' -o -name .ansible \) -prune)
find "${places[@]}" -xdev "${leave[@]}" -o -printf '%p %m %u %g %s %l\n' 2>/dev/null | sort | sha256sum
find "${places[@]}" -xdev "${leave[@]}" -o -type f -print0 2>/dev/null | sort -z | xargs -0 sha256sum | sha256sum
getent passwd | sha256sum
getent group | sha256sum
dpkg-query --show | sha256sum
# Not the scopes of sessions.
systemctl list-unit-files --no-legend | awk '$2 != "transient"' | sort | sha256sum
