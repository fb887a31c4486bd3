#!/bin/bash
# One line for the release, each service and each keychain of this host: what, certificate, expires, health; separated by
# tabs. Health begins with OK where nothing is to be done.
set -u
export XDG_DATA_HOME=/run/spva-status XDG_CONFIG_HOME=/run/spva-status
install -d -m 0700 "$XDG_DATA_HOME"
if [ -r /etc/spva/pva.env ]; then set -a; . /etc/spva/pva.env; set +a; fi
bin=/opt/spva/current/bin
row() { printf '%s\t%s\t%s\t%s\n' "$1" "${2:--}" "${3:--}" "$4"; }

if [ ! -e /opt/spva/current/.complete ]; then
    row release - - "there is none, site.yml brings it"
    exit 0
fi
row "release $(cut -d' ' -f1 /opt/spva/current/.complete)" - - OK

while read -r unit load active _; do
    case $unit in spva-keychain@* | '') continue ;; esac
    # Only named by the order of the others.
    if [ "$load" = not-found ]; then continue; fi
    health=$active
    if [ "$active" = active ]; then
        health=$(systemctl show -P StatusText "$unit")
        case $health in
            *'NOT OK'* | 'reload failed'*) ;;
            *) health="OK${health:+, $health}" ;;
        esac
        restarts=$(systemctl show -P NRestarts "$unit")
        [ "$restarts" = 0 ] || health="$health, restarted $restarts times"
    fi
    row "${unit%.service}" - - "$health"
done < <(systemctl list-units --all --plain --no-legend 'spva-*.service')

expires() { # FILE: end of the certificate in the keychain
    openssl pkcs12 -in "$1" -nokeys -clcerts -passin pass: 2>/dev/null | openssl x509 -noout -enddate 2>/dev/null |
        sed 's/^notAfter=//' | { read -r end && date -u -d "$end" +%Y-%m-%dT%H:%M:%SZ; } || echo -
}

for dropin in /etc/systemd/system/spva-keychain@*.service.d; do
    [ -d "$dropin" ] || continue
    name=${dropin#*@} name=${name%.service.d}
    file=/var/lib/spva/keychain/$name/keychain.p12
    if [ ! -e "$file" ]; then
        row "keychain $name" - - "missing, see journalctl -u spva-keychain@$name"
        continue
    fi
    said=$("$bin/pvxcert" -w 5 -f "$file" --trust-anchor /etc/spva/trust-anchor.pem 2>&1)
    state=$(sed -n 's/^Status *: *//p' <<<"$said" | tail -n 1)
    id=$(sed -n 's/^Certificate ID *: *//p' <<<"$said" | head -n 1)
    case $state in
        VALID)
            health=OK
            if systemctl --quiet is-failed "spva-keychain@$name.service"; then
                health="VALID, but its renewal has failed, see journalctl -u spva-keychain@$name"
            elif ! systemctl --quiet is-active "spva-keychain@$name.timer"; then
                health="VALID, but nothing renews it, start spva-keychain@$name.timer"
            fi
            ;;
        PENDING_APPROVAL) health="PENDING_APPROVAL, an administrator approves it with pvxcert --approve $id" ;;
        REVOKED) health="REVOKED, for good, only rotate.yml -e keychain=$name gets another one" ;;
        *) health=${state:-no answer about its status} ;;
    esac
    row "keychain $name" "$id" "$(expires "$file")" "$health"
done
