#!/bin/bash
# One line for each service and keychain of this host: service, certificate, expires, health; separated by tabs.
set -u
export XDG_DATA_HOME=/run/spva-status XDG_CONFIG_HOME=/run/spva-status
install -d -m 0700 "$XDG_DATA_HOME"
if [ -r /etc/spva/pva.env ]; then set -a; . /etc/spva/pva.env; set +a; fi
bin=/opt/spva/current/bin

expires() { # FILE: end of the certificate in the keychain
    openssl pkcs12 -in "$1" -nokeys -clcerts -passin "${2:-pass:}" 2>/dev/null | openssl x509 -noout -enddate 2>/dev/null |
        sed 's/^notAfter=//' | { read -r end && date -u -d "$end" +%Y-%m-%dT%H:%M:%SZ; } || echo -
}

systemctl list-units --all --plain --no-legend 'spva-*.service' | while read -r unit _ active _; do
    case $unit in spva-keychain@*) continue ;; esac
    health=$active
    if [ "$active" = active ]; then
        health="OK, $(systemctl show -P StatusText "$unit")"
        restarts=$(systemctl show -P NRestarts "$unit")
        [ "$restarts" = 0 ] || health="$health, restarted $restarts times"
    fi
    printf '%s\t-\t-\t%s\n' "${unit%.service}" "$health"
done
for file in /var/lib/spva/keychain/*/keychain.p12; do
    [ -e "$file" ] || continue
    name=$(basename "$(dirname "$file")")
    said=$("$bin/pvxcert" -w 5 -f "$file" --trust-anchor /etc/spva/trust-anchor.pem 2>&1)
    state=$(sed -n 's/^Status *: *//p' <<<"$said" | tail -n 1)
    id=$(sed -n 's/^Certificate ID *: *//p' <<<"$said" | head -n 1)
    health=${state:-no answer}
    [ "$health" != VALID ] || health=OK
    printf 'keychain %s\t%s\t%s\t%s\n' "$name" "${id:--}" "$(expires "$file")" "$health"
done
