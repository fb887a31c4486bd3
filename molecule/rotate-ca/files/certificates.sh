#!/bin/bash
# What became of the certificates, as the client's host sees it:
#   certificates.sh keep                      keeps copies of the keychains that are in use
#   certificates.sh replaced ISSUER           waits until each keychain has another certificate than the copy, of this authority
#   certificates.sh both                      the service signs the status of the old ones and of the new ones: all are VALID
#   certificates.sh ended                     the old ones are EXPIRED and refused, the new ones are VALID
# The IOC's keychain is on another host: IOC=ISSUER:SERIAL names its old certificate.
set -euo pipefail
as=/run/verify/as.sh
old=/run/verify/before
no() { echo "certificates: $*" >&2; exit 1; }
file() { echo "/var/lib/spva/keychain/$1/keychain.p12"; }
serial() { openssl pkcs12 -in "$1" -nokeys -clcerts -passin pass: 2>/dev/null | openssl x509 -noout -serial; }
shown() { # ACCOUNT FILE-OR-IDENTIFIER: what the service says of a certificate
    local what=(-f "$2")
    case $2 in /*) ;; *) what=("$2") ;; esac
    $as "$1" pvxcert --trust-anchor /etc/spva/trust-anchor.pem -w 10 "${what[@]}" 2>&1
}
expect() { # STATE ACCOUNT FILE-OR-IDENTIFIER
    local said
    said=$(shown "$2" "$3" || true)
    [ "$(sed -n 's/^Status *: *//p' <<<"$said" | tail -n 1)" = "$1" ] || no "$3 is not $1: $said"
}
put() { # KEYCHAIN NUMBER: whether the operator with this keychain may write
    EPICS_PVA_TLS_OPTIONS=no_revocation_check VERIFY_KEYCHAIN=$1 $as operator pvxput -w 10 demo:setpoint "$2"
}
case $1 in
    keep)
        for name in client operator; do
            install -d -m 0700 -o "spva-$name" -g "spva-$name" "$old-$name"
            install -m 0600 -o "spva-$name" -g "spva-$name" "$(file $name)" "$old-$name/keychain.p12"
        done
        put "$old-operator/keychain.p12" 11 >/dev/null || no "the operator cannot write before anything has changed"
        ;;
    replaced)
        # A timer would do this within minutes.
        systemctl start spva-keychain@operator.service
        for name in client operator; do
            for _ in $(seq 600); do
                if [ "$(serial "$(file $name)")" != "$(serial "$old-$name/keychain.p12")" ]; then break; fi
                sleep 0.5
            done
            said=$(shown $name "$(file $name)")
            grep -q "^Certificate ID *: *$2:" <<<"$said" || no "the keychain of $name is not of $2: $said"
        done
        ;;
    both)
        for name in client operator; do
            expect VALID $name "$(file $name)"
            expect VALID $name "$old-$name/keychain.p12"
        done
        expect VALID client "$IOC"
        put "$old-operator/keychain.p12" 12 >/dev/null || no "the operator cannot write with the old keychain"
        put "$(file operator)" 13 >/dev/null || no "the operator cannot write with the new keychain"
        ;;
    ended)
        for name in client operator; do
            expect VALID $name "$(file $name)"
            expect EXPIRED $name "$old-$name/keychain.p12"
        done
        expect EXPIRED client "$IOC"
        if put "$old-operator/keychain.p12" 14 >/dev/null 2>&1; then no "the operator writes with a certificate of the authority that has ended"; fi
        put "$(file operator)" 15 >/dev/null || no "the operator cannot write with the new keychain after the end"
        ;;
esac
