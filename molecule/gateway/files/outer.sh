#!/bin/bash
# What people in the outer network rely on, tried from there: outer.sh INNER_ADDRESS
set -euo pipefail
as=/run/verify/as.sh
no() { echo "outer: $*" >&2; exit 1; }

# No way around the gateways.
if ip route get "$1" >/dev/null 2>&1; then no "there is a route to $1"; fi
for port in 22 5075 5076 5085; do
    if timeout 2 bash -c "exec 3<>/dev/tcp/$1/$port" 2>/dev/null; then no "$1 port $port can be reached"; fi
done

# Identity: the keychains that tokens became, and their status, both through a gateway.
for name in client operator; do
    shown=$($as $name pvxcert -w 10 -f /var/lib/spva/keychain/$name/keychain.p12)
    grep -q '^Status *: VALID' <<<"$shown" || no "certificate of $name: $shown"
    grep -q "CN=$name" <<<"$shown" || no "subject of $name: $shown"
done

# Found by broadcast, over TLS, with a gateway's identity; hidden what the PV list denies.
$as client pvxget -w 10 demo:open >/dev/null || no "demo:open was not found by broadcast"
info=$($as client pvxinfo -w 10 -v demo:open 2>&1)
grep -q '^# TLS x509:.*/gateway@10\.78\.0\.6[23]' <<<"$info" || no "no TLS to a gateway: $info"
if $as client pvxget -w 2 demo:count.DESC >/dev/null 2>&1; then no "a PV that the PV list denies was found"; fi
# Each gateway alone, and by TCP alone, as from behind a firewall.
for gateway in 10.78.0.62 10.78.0.63; do
    VERIFY_ADDR_LIST=$gateway $as client pvxget -w 10 demo:open >/dev/null || no "$gateway does not serve demo:open"
    VERIFY_ADDR_LIST=127.0.0.1:5099 EPICS_PVA_NAME_SERVERS=$gateway:5075 $as client pvxget -w 10 demo:open >/dev/null ||
        no "$gateway does not serve demo:open by TCP alone"
done

# Access security: one put refused, another granted; and an operator's.
want=$((RANDOM % 1000 + 2))
if $as client pvxput -w 10 demo:setpoint 1 >/dev/null 2>/run/verify/refused; then no "a put that is forbidden went through"; fi
grep -qi 'denied' /run/verify/refused || no "refusal without a reason: $(cat /run/verify/refused)"
if VERIFY_KEYCHAIN='' $as operator pvxput -w 10 demo:setpoint 1 >/dev/null 2>&1; then
    no "a put without a certificate went through"
fi
$as client pvxput -w 10 demo:open $want >/dev/null || no "the client's put was refused"
$as client pvxget -w 10 --json demo:open | grep "\"value\": *$want\b" >/dev/null || no "the client's put had no effect"
$as operator pvxput -w 10 demo:setpoint $want >/dev/null || no "the operator's put was refused"
$as client pvxget -w 10 --json demo:setpoint | grep "\"value\": *$want\b" >/dev/null || no "the operator's put had no effect"

# The gateways' own PVs.
for gateway in spva-gwa spva-gwb; do
    $as client pvxget -w 10 $gateway:StatsTime >/dev/null || no "$gateway:StatsTime is not served"
done
