#!/bin/bash
# Looks for the test site's passwords, for tokens and for private keys where they must not be.
set -u
secret='canary-[a-z]+-47[0-9]+'
# In all fields of the journal, command lines too.
found() { echo "secrets: $*" >&2; exit 1; }

if journalctl --no-pager --output=export | grep -a -nE -e "$secret" -e 'eyJ[A-Za-z0-9_-]{8,}[.][A-Za-z0-9_-]{8,}' -e 'BEGIN [A-Z ]*PRIVATE KEY'; then
    found "in the journal"
fi
if cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\0' '\n' | grep -nE "$secret"; then
    found "in an argument or an environment"
fi
if find /etc /opt/spva /var/lib/spva /run/spva /tmp /var/tmp -xdev -type f -perm /007 -exec grep -lE "$secret" {} +; then
    found "in a file that everybody may read"
fi
if find /etc/spva /var/lib/spva -xdev -type f \( -name '*.p12' -o -name 'certs*.db' -o -name id_rsa.pem \) -perm /077 | grep .; then
    found "in a file that others than its owner may read"
fi
exit 0
