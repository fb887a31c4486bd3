#!/bin/bash
# A client that looks on with its deployed keychain: watch.sh start | back [twice] | dropped MICROSECONDS [SECONDS]
# WATCH_USER, WATCH_KEYCHAIN and WATCH_ADDR_LIST make it another client, which finds PVs at these addresses alone; WATCH_GAPS and
# WATCH_SECONDS say how often it may lose its connection and for how long.
set -euo pipefail
unit=verify-watch
no() { echo "watch: $*" >&2; exit 1; }
said() { journalctl --no-pager -o "${1:-cat}" _SYSTEMD_INVOCATION_ID="$(systemctl show -P InvocationID $unit)"; }
case $1 in
    start) # begins anew
        systemctl stop $unit 2>/dev/null || true
        systemctl reset-failed $unit 2>/dev/null || true
        user=${WATCH_USER-spva-client} only=()
        install -d -m 0700 -o "$user" -g "$(id -gn "$user")" /run/watch
        # By env: a unit's environment file goes before its environment.
        if [ -n "${WATCH_ADDR_LIST-}" ]; then only=("EPICS_PVA_ADDR_LIST=$WATCH_ADDR_LIST" EPICS_PVA_AUTO_ADDR_LIST=NO); fi
        systemd-run --quiet --unit=$unit --uid="$user" --property=EnvironmentFile=/etc/spva/pva.env \
            --property=LogRateLimitIntervalSec=0 --setenv=PYTHONUNBUFFERED=1 \
            --setenv=EPICS_PVA_TLS_KEYCHAIN="${WATCH_KEYCHAIN-/var/lib/spva/keychain/client/keychain.p12}" \
            --setenv=XDG_CONFIG_HOME=/run/watch --setenv=XDG_DATA_HOME=/run/watch \
            /usr/bin/env "${only[@]}" "$(PATH=$PATH:/opt/spva/current/bin command -v pvxmonitor)" --json demo:count
        for _ in $(seq 100); do
            if said | grep '"value"' >/dev/null; then exit 0; fi
            sleep 0.1
        done
        no "no update in 10 s: $(said)"
        ;;
    back) # it had to connect again, has done so at once, and goes on. A busy machine may squash updates; behind a gateway one comes twice
          # when the gateway moves to TLS, as it does after a restart of the IOC: "twice"
        [ "$(systemctl is-active $unit)" = active ] || no "it has ended"
        said json | TWICE=${2:-} GAPS=${WATCH_GAPS:-2} SECONDS_AT_MOST=${WATCH_SECONDS:-2} python3 -c '
import json, os, sys
gone, gaps, last = 0, [], -1
for record in map(json.loads, sys.stdin):
    if not str(record["MESSAGE"]).startswith("{"):
        continue
    at, told = int(record["__REALTIME_TIMESTAMP"]) / 1e6, json.loads(record["MESSAGE"])
    if told["event"] == "disconnected":
        gone = at
    elif told["event"] == "update":
        count = told["value"]["value"]
        assert gone or last < 0 or count > last or (os.environ["TWICE"] and count == last), f"{count} follows {last}"
        if gone:
            gaps.append(round(at - gone, 3))
        gone, last = 0, count
assert gaps, "it kept its connection: nothing new is in use"
assert len(gaps) <= int(os.environ["GAPS"]), gaps
assert not gone and max(gaps) < float(os.environ["SECONDS_AT_MOST"]), gaps
print("seconds without a connection:", *gaps)'
        ;;
    dropped) # disconnected at most so many seconds after that time; one, unless said otherwise
        for _ in $(seq 50); do
            at=$(said json | grep -m 1 -i disconnect | sed 's/.*"__REALTIME_TIMESTAMP" *: *"\([0-9]*\)".*/\1/' || true)
            if [ -n "$at" ]; then break; fi
            sleep 0.1
        done
        [ -n "$at" ] || no "it goes on: $(said | tail -n 3)"
        [ $((at - $2)) -le $((${3:-1} * 1000000)) ] || no "disconnected after $((at - $2)) microseconds"
        systemctl stop $unit
        echo "disconnected after $((at - $2)) microseconds"
        ;;
esac
