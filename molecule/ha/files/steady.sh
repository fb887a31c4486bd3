#!/bin/bash
# The client of watch.sh has not lost its connection, and goes on.
set -euo pipefail
unit=verify-watch
said() { journalctl --no-pager -o cat _SYSTEMD_INVOCATION_ID="$(systemctl show -P InvocationID $unit)"; }
no() { echo "steady: $*" >&2; exit 1; }
[ "$(systemctl is-active $unit)" = active ] || no "it has ended"
before=$(said | grep -c '"update"')
for _ in $(seq 300); do
    if [ "$(said | grep -c '"update"')" -gt "$before" ]; then break; fi
    sleep 0.1
done
[ "$(said | grep -c '"update"')" -gt "$before" ] || no "there are no more updates"
if said | grep '"disconnected"' >&2; then no "it was disconnected"; fi
echo "$before updates and more, without a gap"
