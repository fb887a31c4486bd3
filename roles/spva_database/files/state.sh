# What this host has of the cluster spva, as JSON: state.sh prints
#   version, state (none, standby, primary), timeline, system, shape (of the data, in pg_controldata's words), end (of the log that is known to be there),
#   admitted (addresses from which standbys may log in)
# "primary" is any data that is not a standby's, whether it runs or not. Nothing is changed.
set -eu
version=$({ ls -d /etc/postgresql/*/spva/postgresql.conf 2>/dev/null || true; } | sort -V | tail -n 1 | cut -d/ -f4)
data=/var/lib/postgresql/$version/spva
if [ -z "$version" ] || [ ! -e "$data/PG_VERSION" ]; then
    state=none
elif [ -e "$data/standby.signal" ]; then
    state=standby
elif [ -e "$data.blank" ]; then
    # Made by pg_createcluster and never started: a copy takes its place.
    state=none
else
    state=primary
fi
field() { printf '%s\n' "$control" | sed -n "s/^$1: *//p"; }
timeline=0 system='' shape='' end='' runs=false
if [ "$state" != none ]; then
    control=$(LC_ALL=C "/usr/lib/postgresql/$version/bin/pg_controldata" -D "$data")
    system=$(field 'Database system identifier')
    shape=$(field 'Database cluster state')
    end=$(field 'Latest checkpoint location')
    timeline=$(field "Latest checkpoint's TimeLineID")
    recovered=$(field "Min recovery ending loc's timeline")
    if [ "$recovered" -gt "$timeline" ]; then timeline=$recovered; fi
    cd /
    # What runs knows more than its file.
    ask="SELECT CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) ELSE pg_current_wal_lsn() END"
    if said=$(runuser -u postgres -- psql --cluster "$version/spva" -XAtq -d postgres -c "$ask" 2>/dev/null); then
        runs=true end=$said
    fi
fi
admitted=$(awk '$2 == "replication" { printf "%s\"%s\"", n++ ? ", " : "", $4 }' "/etc/postgresql/$version/spva/pg_hba.conf" 2>/dev/null || true)
printf '{"version": "%s", "state": "%s", "timeline": %s, "system": "%s", "shape": "%s", "runs": %s, "end": "%s", "admitted": [%s]}\n' \
    "$version" "$state" "$timeline" "$system" "$shape" "$runs" "$end" "$admitted"
