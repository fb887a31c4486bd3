#!/bin/sh
# Before the cluster starts as a primary: guard.sh VERSION
# A primary whose place another host has taken must not take commits again. Each other host of the database is asked for its timeline, which
# PostgreSQL raises when a standby is promoted. One that does not answer forbids nothing: a primary may have to start alone.
set -u
home=/etc/postgresql/$1/spva
data=/var/lib/postgresql/$1/spva
if [ -e "$data/standby.signal" ] || [ ! -r "$home/peers" ]; then exit 0; fi
control=$(LC_ALL=C "/usr/lib/postgresql/$1/bin/pg_controldata" -D "$data") || exit 0
system=$(printf '%s\n' "$control" | sed -n 's/^Database system identifier: *//p')
timeline=$(printf '%s\n' "$control" | sed -n "s/^Latest checkpoint's TimeLineID: *//p")
cd /
while read -r name conninfo; do
    said=$(runuser -u postgres -- psql -XAtq -w -d "$conninfo replication=true connect_timeout=3" -c IDENTIFY_SYSTEM </dev/null 2>/dev/null) || continue
    theirs=$(printf '%s\n' "$said" | cut -d '|' -f 2)
    if [ "${said%%|*}" = "$system" ] && [ "$theirs" -gt "$timeline" ]; then
        echo "not started: $name has taken over from this host (timeline $theirs, here $timeline), and two primaries would part the history;" \
            "make this host its standby: playbooks/standby.yml -e standby=THIS-HOST" >&2
        exit 1
    fi
done <"$home/peers"
exit 0
