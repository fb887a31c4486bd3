#!/bin/bash
# One line for the release, each service and each keychain of this host: what, certificate, renew by, expires, health;
# separated by tabs. Health begins with OK where nothing is to be done.
set -u
export XDG_DATA_HOME=/run/spva-status XDG_CONFIG_HOME=/run/spva-status
install -d -m 0700 "$XDG_DATA_HOME"
if [ -r /etc/spva/pva.env ]; then set -a; . /etc/spva/pva.env; set +a; fi
bin=/opt/spva/current/bin
row() { printf '%s\t%s\t%s\t%s\t%s\n' "$1" "${2:--}" "${3:--}" "${4:--}" "$5"; }

streams() { # PORT: health of the stream between the primary and its standbys; OK where there is none
    local said
    said=$(cd / && runuser -u postgres -- psql -XAtq -p "$1" -d postgres -c "$stream" 2>&1) || said="cannot be asked: ${said%%$'\n'*}"
    printf '%s' "${said:-OK}"
}
# A standby is behind if it has not played back what it got; a primary says how much each of its standbys lacks.
stream="
SELECT CASE WHEN pg_is_in_recovery() THEN (
    SELECT CASE WHEN count(*) FILTER (WHERE status = 'streaming') = 0
        THEN 'standby, does not follow the primary, see its log'
        ELSE 'OK, standby, ' || pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) || ' octets behind' END
    FROM pg_stat_wal_receiver)
ELSE (
    SELECT CASE WHEN count(*) = 0 THEN 'OK' ELSE CASE WHEN bool_and(r.state IS NOT DISTINCT FROM 'streaming') THEN 'OK, ' ELSE '' END || 'primary, '
        || string_agg(substr(s.slot_name, 6) || CASE
            WHEN s.wal_status = 'lost' THEN ' was away for too long, standby.yml copies it anew'
            WHEN r.state IS NULL THEN ' does not follow, lacks ' || coalesce(pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn)), 'all')
            WHEN r.state <> 'streaming' THEN ' catches up, lacks ' || pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), r.replay_lsn))
            ELSE ' ' || r.sync_state || ', ' || pg_wal_lsn_diff(pg_current_wal_lsn(), r.replay_lsn) || ' octets behind' END, ', ' ORDER BY s.slot_name) END
    FROM pg_replication_slots s LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid
    WHERE s.slot_name ~ '^spva_') END"

for home in /etc/postgresql/*/spva; do
    [ -d "$home" ] || continue
    version=${home#/etc/postgresql/} version=${version%/spva}
    read -r port state < <(pg_lsclusters --no-header | awk -v version="$version" '$1 == version && $2 == "spva" { print $3, $4 }')
    # A standby's state is "online,recovery".
    if [ "${state%%,*}" = online ] && pg_isready -q -p "$port"; then
        row "database $version" - - "$(date -u -d "$(openssl x509 -in "$home/server.crt" -noout -enddate | cut -d= -f2)" +%Y-%m-%dT%H:%M:%SZ)" "$(streams "$port")"
    elif [ "$(cat "$home/start.conf" 2>/dev/null)" = disabled ]; then
        row "database $version" - - - "fenced, another host is the primary, standby.yml makes it a standby"
    else
        row "database $version" - - - "${state:-missing}, see /var/log/postgresql/postgresql-$version-spva.log"
    fi
    has_database=yes
done

if [ ! -e /opt/spva/current/.complete ]; then
    # A host that has the database alone has no release.
    if [ -n "${has_database-}" ]; then exit 0; fi
    row release - - - "there is none, site.yml brings it"
    exit 0
fi
release=$(cut -d' ' -f1 /opt/spva/current/.complete)
row "release $release" - - - OK

while read -r unit load active _; do
    case $unit in spva-keychain@* | '') continue ;; esac
    # Only named by the order of the others.
    if [ "$load" = not-found ]; then continue; fi
    # A timer looks after that keychain. The unit is known here because those that need the keychain start after it.
    case $unit in spva-keychain-daemon@*) [ "$active" != inactive ] || systemctl --quiet is-enabled "$unit" 2>/dev/null || continue ;; esac
    health=$active
    if [ "$active" = active ]; then
        health=$(systemctl show -P StatusText "$unit")
        case $health in
            *'NOT OK'* | 'reload failed'*) ;;
            *) health="OK${health:+, $health}" ;;
        esac
        restarts=$(systemctl show -P NRestarts "$unit")
        [ "$restarts" = 0 ] || health="$health, restarted $restarts times"
        # What a process runs is what it was started from.
        runs=$(tr '\0' '\n' 2>/dev/null <"/proc/$(systemctl show -P MainPID "$unit")/cmdline" | sed -n 's#^/opt/spva/releases/\([^/]*\)/.*#\1#p' | head -n 1)
        [ "${runs:-$release}" = "$release" ] || health="runs release $runs, restart it"
    fi
    row "${unit%.service}" - - - "$health"
done < <(systemctl list-units --all --plain --no-legend 'spva-*.service')

expires() { # FILE: end of the certificate in the keychain
    openssl pkcs12 -in "$1" -nokeys -clcerts -passin pass: 2>/dev/null | openssl x509 -noout -enddate 2>/dev/null |
        sed 's/^notAfter=//' | { read -r end && date -u -d "$end" +%Y-%m-%dT%H:%M:%SZ; } || echo -
}

for dropin in /etc/systemd/system/spva-keychain@*.service.d; do
    [ -d "$dropin" ] || continue
    name=${dropin#*@} name=${name%.service.d}
    file=/var/lib/spva/keychain/$name/keychain.p12
    # A daemon keeps it, or a timer looks after it.
    keeper=spva-keychain@$name needed=spva-keychain@$name.timer
    if systemctl --quiet is-enabled "spva-keychain-daemon@$name.service" 2>/dev/null; then
        keeper=spva-keychain-daemon@$name needed=$keeper.service
    fi
    if [ ! -e "$file" ]; then
        row "keychain $name" - - - "missing, see journalctl -u $keeper"
        continue
    fi
    said=$("$bin/pvxcert" -w 5 -f "$file" --trust-anchor /etc/spva/trust-anchor.pem 2>&1)
    state=$(sed -n 's/^Status *: *//p' <<<"$said" | tail -n 1)
    id=$(sed -n 's/^Certificate ID *: *//p' <<<"$said" | head -n 1)
    renew=$(sed -n 's/^Renew By *: *//p' <<<"$said" | head -n 1)
    renew=$([ -z "$renew" ] || date -u -d "$renew" +%Y-%m-%dT%H:%M:%SZ 2>/dev/null)
    case $state in
        VALID | SCHEDULED_OFFLINE)
            health=OK
            [ "$state" = VALID ] || health="OK, SCHEDULED_OFFLINE"
            # Under the name of a former authority the service tells which one is present.
            present=$("$bin/pvxget" -w 5 --json "$EPICS_PVA_CERT_PV_PREFIX:ROOT:${id%%:*}" 2>/dev/null | sed -n 's/.*"issuer": *"\([0-9a-f]\{8\}\)".*/\1/p')
            [ "${present:-${id%%:*}}" = "${id%%:*}" ] || health="$health, of the former authority ${id%%:*} ($present is the present one)"
            if systemctl --quiet is-failed "$keeper.service"; then
                health="$state, but its renewal has failed, see journalctl -u $keeper"
            elif ! systemctl --quiet is-active "$needed"; then
                health="$state, but nothing renews it, start $needed"
            fi
            ;;
        PENDING_RENEWAL) health="PENDING_RENEWAL, suspended until it is renewed, see journalctl -u $keeper" ;;
        PENDING_APPROVAL) health="PENDING_APPROVAL, an administrator approves it with pvxcert --approve $id" ;;
        REVOKED) health="REVOKED, for good, only rotate.yml -e keychain=$name gets another one" ;;
        *) health=${state:-no answer about its status} ;;
    esac
    row "keychain $name" "$id" "$renew" "$(expires "$file")" "$health"
done
