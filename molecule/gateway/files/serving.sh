#!/bin/bash
# The address of the gateway that serves the client of watch.sh: the peer of its TLS connection.
set -euo pipefail
pid=$(systemctl show -P MainPID verify-watch)
ss --no-header --tcp --numeric --processes state established | grep "pid=$pid," | awk '{ print $4 }' | sed -n 's/:5076$//p' | grep -m 1 .
