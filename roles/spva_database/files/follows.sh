#!/bin/sh
# Whether the standby on this host follows its primary: follows.sh VERSION, within half a minute.
set -u
cd /
for _ in $(seq 30); do
    said=$(runuser -u postgres -- psql --cluster "$1/spva" -XAtq -d postgres -c 'SELECT status FROM pg_stat_wal_receiver' 2>&1)
    [ "$said" != streaming ] || exit 0
    sleep 1
done
log=/var/log/postgresql/postgresql-$1-spva.log
case $(tail -n 40 "$log" 2>/dev/null) in
    *'has already been removed'* | *'can no longer get changes'*)
        why='the primary no longer has what this host lacks, because it was away for too long: copy it anew with playbooks/standby.yml -e standby=THIS-HOST' ;;
    *'No space left'*) why='the disk of this host is full: make room, and restart PostgreSQL' ;;
    *'password authentication failed'*) why='the primary has another spva_database_replication_password: run the playbook for both hosts' ;;
    *'forked off'* | *'is not in this server'* | *'identifier differs'*)
        why='this host has commits that the primary never had: copy it anew with playbooks/standby.yml -e standby=THIS-HOST' ;;
    *) why="see $log" ;;
esac
printf 'this host does not follow the primary: %s\n' "$why" >&2
tail -n 5 "$log" >&2
exit 1
