#!/bin/bash
# Runs a tool as a service account with its keychain: as.sh NAME COMMAND...
set -eu
set -a
. /etc/spva/pva.env
if [ -n "${VERIFY_ADDR_LIST-}" ]; then
    EPICS_PVA_AUTO_ADDR_LIST=NO
    EPICS_PVA_ADDR_LIST=$VERIFY_ADDR_LIST
fi
EPICS_PVA_TLS_KEYCHAIN=${VERIFY_KEYCHAIN-/var/lib/spva/keychain/$1/keychain.p12}
XDG_CONFIG_HOME=/run/verify/$1
XDG_DATA_HOME=/run/verify/$1
set +a
account=spva-$1
shift
install -d -m 0755 /run/verify
install -d -m 0700 -o "$account" -g "$account" "$XDG_DATA_HOME"
exec setpriv --reuid "$account" --regid "$account" --clear-groups -- "$@"
