#!/bin/sh
# A copy of the primary as the data of this host's cluster: basebackup.sh VERSION CONNINFO SLOT
# Data that is there already stays as it is. The copy is made beside its place, so one that was interrupted is never taken for a whole one.
set -eu
data=/var/lib/postgresql/$1/spva
new=$data.new
no() { printf 'no copy of the primary was made: %s\n' "$*" >&2; exit 1; }
if [ -e "$data/PG_VERSION" ] && [ ! -e "$data.blank" ]; then
    no "$data has data already, and was not changed"
fi
cd /
rm -rf --one-file-system "$new"
install -d -o postgres -g postgres -m 0700 "$new"
if ! said=$(runuser -u postgres -- "/usr/lib/postgresql/$1/bin/pg_basebackup" --pgdata="$new" --dbname="$2" --slot="$3" --wal-method=stream \
    --checkpoint=fast --no-password 2>&1); then
    rm -rf --one-file-system "$new"
    case $said in
        *'password authentication failed'* | *'no password supplied'*)
            advice='the primary has another spva_database_replication_password than this host: run the playbook for both' ;;
        *'No space left'*)
            advice="the disk of this host is full: make room for the database in ${data%/*}" ;;
        *'Connection refused'* | *'timeout expired'* | *'timed out'* | *'No route to host'* | *'could not translate'* | *'starting up'*)
            advice='the primary cannot be reached: see whether its PostgreSQL runs, and whether the network lets its port through' ;;
        *'certificate verify failed'* | *'does not match host name'* | *'root certificate file'*)
            advice="the primary's TLS certificate is not the one that this host knows: run the playbook for both, or see spva_database_tls_ca" ;;
        *'no pg_hba.conf entry'*)
            advice='the primary does not let this address in: run the playbook for both, or name it in spva_database_peers' ;;
        *'replication slot'*)
            advice="the primary has no usable slot $3 for this host: run the playbook for both" ;;
        *) advice='see the log of the primary' ;;
    esac
    no "$advice ($(printf '%s\n' "$said" | tail -n 1))"
fi
runuser -u postgres -- touch "$new/standby.signal"
sync -f "$new"
rm -rf --one-file-system "$data"
# Before the copy has its name: what is there then is never taken for a blank cluster.
rm -f "$data.blank"
mv "$new" "$data"
