#!/bin/bash
# What the certificate service on this host says of itself: node.sh ADDRESS members | ok [MEMBERS] | lost
# members prints how many nodes there are. The others wait for at most a minute: until it is well (and knows so many nodes), or without its database.
set -uo pipefail
set -a
. /etc/spva/pva.env
set +a
export EPICS_PVA_AUTO_ADDR_LIST=NO EPICS_PVA_ADDR_LIST=$1 XDG_DATA_HOME=/run/spva-node XDG_CONFIG_HOME=/run/spva-node
unset EPICS_PVA_NAME_SERVERS
value() { sed -n "s/^ *$1 [a-z0-9_]* = //p" <<<"$said"; }
for _ in $(seq 60); do
    said=$(/opt/spva/current/bin/pvxget -w 5 "$EPICS_PVA_CERT_PV_PREFIX:HEALTH" 2>&1)
    case $2 in
        members)
            value cluster_members | grep . && exit 0
            ;;
        lost)
            [ "$(value value.index)" = 0 ] && [ "$(value db_ok)" = false ] && exit 0
            ;;
        *)
            [ "$(value value.index)" = 1 ] && [ "$(value db_ok)" = true ] && [ "${3:-$(value cluster_members)}" = "$(value cluster_members)" ] && exit 0
            ;;
    esac
    sleep 1
done
printf 'the certificate service on this host is not %s: %s\n' "${*:2}" "$said" >&2
exit 1
