#!/bin/bash
# A monitor over TLS whose certificate is renewed every few seconds: lasting.sh start, and later lasting.sh check.
# After a rotation: lasting.sh rotated.
set -euo pipefail
home=/var/lib/spva/keychain/lasting
file=$home/keychain.p12
state=/run/verify/lasting
unit=verify-lasting
no() { echo "lasting: $*" >&2; journalctl --no-pager -o cat -n 30 -u spva-keychain-daemon@lasting >&2; exit 1; }
certificate() { /opt/spva/current/bin/pvxcert -w 10 -f "$file" --trust-anchor /etc/spva/trust-anchor.pem; }
invocation() { systemctl show -P InvocationID "$unit"; }
renewals() { # since the second $1
    journalctl --no-pager -o cat --since "@$1" -u spva-cms SPVA_EVENT=certificate-renewed SPVA_CERT_ID="$(cat $state.id)" | wc -l
}

case $1 in
    start)
        for _ in $(seq 300); do
            if systemctl --quiet is-active spva-keychain-daemon@lasting; then break; fi
            sleep 0.1
        done
        systemctl --quiet is-active spva-keychain-daemon@lasting || no "the daemon does not run"
        systemctl --quiet is-active spva-keychain@lasting.timer && no "the timer runs beside the daemon"
        systemctl stop $unit 2>/dev/null || true
        systemctl reset-failed $unit 2>/dev/null || true
        set -a
        . /etc/spva/pva.env
        export XDG_DATA_HOME=/run/verify XDG_CONFIG_HOME=/run/verify
        set +a
        certificate >$state.shown || no "$(cat $state.shown)"
        sed -n 's/^Certificate ID *: *//p' $state.shown | head -n 1 >$state.id
        stat -c '%i %Y %s' $file >$state.file
        systemd-run --quiet --unit=$unit --uid=spva-client --property=EnvironmentFile=/etc/spva/pva.env \
            --setenv=EPICS_PVA_TLS_KEYCHAIN=$file --setenv=XDG_CONFIG_HOME=$home --setenv=XDG_DATA_HOME=$home \
            /opt/spva/current/bin/pvxmonitor demo:count
        for _ in $(seq 300); do
            if journalctl --no-pager -o cat _SYSTEMD_INVOCATION_ID="$(invocation)" | grep 'value double' >/dev/null; then
                date +%s >$state.since
                exit 0
            fi
            sleep 0.1
        done
        no "the monitor got no update in 30 s"
        ;;
    check)
        since=$(cat $state.since)
        killed=
        for _ in $(seq 500); do
            done=$(renewals "$since")
            if [ "$done" -ge 10 ]; then break; fi
            # The service dies once on the way. What it has renewed stays renewed, and its clients come back.
            if [ "$done" -ge 4 ] && [ -z "$killed" ]; then
                systemctl kill --kill-whom=main --signal=KILL spva-cms
                killed=yes
            fi
            sleep 1
        done
        [ "$(renewals "$since")" -ge 10 ] || no "only $(renewals "$since") renewals since $(date -d "@$since")"
        systemctl --quiet is-active $unit || no "the monitor has ended"
        said=$(journalctl --no-pager -o cat _SYSTEMD_INVOCATION_ID="$(invocation)")
        if grep -i disconnect <<<"$said" >&2; then no "the monitor was disconnected"; fi
        [ "$(cat $state.file)" = "$(stat -c '%i %Y %s' $file)" ] || no "the keychain's file has changed"
        # It goes on: there are updates after the tenth renewal.
        seen=$(wc -l <<<"$said")
        for _ in $(seq 300); do
            [ "$(journalctl --no-pager -o cat _SYSTEMD_INVOCATION_ID="$(invocation)" | wc -l)" -le "$seen" ] || break
            sleep 0.1
        done
        [ "$(journalctl --no-pager -o cat _SYSTEMD_INVOCATION_ID="$(invocation)" | wc -l)" -gt "$seen" ] || no "no update after the renewals"
        systemctl stop $unit
        systemctl show -P StatusText spva-keychain-daemon@lasting | grep -q 'renew by' || no "the daemon does not say until when"
        ;;
    rotated)
        # The rotation does not wait for the daemon.
        for _ in $(seq 300); do
            if systemctl --quiet is-active spva-keychain-daemon@lasting; then break; fi
            sleep 0.1
        done
        systemctl --quiet is-active spva-keychain-daemon@lasting || no "the daemon does not run after the rotation"
        [ "$(cat $state.file)" != "$(stat -c '%i %Y %s' $file)" ] || no "the rotation did not replace the keychain"
        set -a
        . /etc/spva/pva.env
        export XDG_DATA_HOME=/run/verify XDG_CONFIG_HOME=/run/verify
        set +a
        certificate >$state.shown
        if grep -q "^Certificate ID *: $(cat $state.id)" $state.shown; then no "the rotation brought the same certificate"; fi
        ;;
esac
