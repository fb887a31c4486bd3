#!/bin/bash
# What operators rely on, tried from a client's host: client.sh IOC_ADDRESS
set -euo pipefail
as=/run/verify/as.sh
no() { echo "client: $*" >&2; exit 1; }

# Identity: the keychains that tokens became.
for name in client operator; do
    shown=$($as $name pvxcert -f /var/lib/spva/keychain/$name/keychain.p12)
    grep -q '^Status *: VALID' <<<"$shown" || no "certificate of $name: $shown"
    grep -q "CN=$name" <<<"$shown" || no "subject of $name: $shown"
done

# Found by broadcast, and over TLS with the IOC's identity.
$as client pvxget -w 10 demo:open >/dev/null || no "demo:open was not found by broadcast"
info=$($as client pvxinfo -w 10 -v demo:open 2>&1)
grep -q '^# TLS x509:.*/softioc@' <<<"$info" || no "no TLS to softioc: $info"

# Found by the address list alone, and not by one that leads elsewhere.
VERIFY_ADDR_LIST=$1 $as client pvxget -w 10 demo:open >/dev/null || no "demo:open was not found by address list"
if VERIFY_ADDR_LIST=127.0.0.1:5099 $as client pvxget -w 1 demo:open >/dev/null 2>&1; then no "demo:open was found where it is not"; fi

# Access security.
want=$((RANDOM % 1000 + 2))
if $as client pvxput -w 10 demo:setpoint 1 >/dev/null 2>/run/verify/refused; then no "a put that is forbidden went through"; fi
grep -qi 'denied' /run/verify/refused || no "refusal without a reason: $(cat /run/verify/refused)"
if VERIFY_KEYCHAIN='' $as operator pvxput -w 10 demo:setpoint 1 >/dev/null 2>&1; then
    no "a put without a certificate went through"
fi
$as operator pvxput -w 10 demo:setpoint $want >/dev/null || no "the operator's put was refused"
$as client pvxget -w 10 --json demo:setpoint | grep "\"value\": *$want\b" >/dev/null || no "the operator's put had no effect"
