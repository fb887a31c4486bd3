#!/bin/bash
# A client that looks on with its deployed keychain: watch.sh start | whole | dropped MICROSECONDS
set -euo pipefail
unit=verify-watch
no() { echo "watch: $*" >&2; exit 1; }
said() { journalctl --no-pager -o "${1:-cat}" _SYSTEMD_INVOCATION_ID="$(systemctl show -P InvocationID $unit)"; }
case $1 in
    start) # begins anew
        systemctl stop $unit 2>/dev/null || true
        systemctl reset-failed $unit 2>/dev/null || true
        install -d -m 0700 -o spva-client -g spva-client /run/watch
        systemd-run --quiet --unit=$unit --uid=spva-client --property=EnvironmentFile=/etc/spva/pva.env \
            --property=LogRateLimitIntervalSec=0 --setenv=PYTHONUNBUFFERED=1 \
            --setenv=EPICS_PVA_TLS_KEYCHAIN=/var/lib/spva/keychain/client/keychain.p12 \
            --setenv=XDG_CONFIG_HOME=/run/watch --setenv=XDG_DATA_HOME=/run/watch pvxmonitor --json demo:count
        for _ in $(seq 100); do
            if said | grep -q '"value"'; then exit 0; fi
            sleep 0.1
        done
        no "no update in 10 s: $(said)"
        ;;
    whole) # nothing lost, no other connection
        [ "$(systemctl is-active $unit)" = active ] || no "it has ended"
        if said | grep -i disconnect; then no "it was disconnected"; fi
        said | python3 -c '
import json, sys
counts = []
for line in sys.stdin:
    if line.startswith("{") and "value" in (update := json.loads(line)):
        update = update["value"]
        counts.append(int(update["value"] if isinstance(update, dict) else update))
assert len(counts) > 50, counts
assert counts == list(range(counts[0], counts[0] + len(counts))), counts
print(len(counts), "updates, all there are")'
        ;;
    dropped) # disconnected at most a second after that time
        for _ in $(seq 50); do
            at=$(said json | python3 -c '
import json, sys
found = [r["__REALTIME_TIMESTAMP"] for r in map(json.loads, sys.stdin) if "isconnect" in str(r["MESSAGE"])]
print(found[0] if found else "")')
            if [ -n "$at" ]; then break; fi
            sleep 0.1
        done
        [ -n "$at" ] || no "it goes on: $(said | tail -n 3)"
        [ $((at - $2)) -le 1000000 ] || no "disconnected after $((at - $2)) microseconds"
        systemctl stop $unit
        echo "disconnected after $((at - $2)) microseconds"
        ;;
esac
