#!/bin/bash
# What a service's sandbox promises, tried from inside: sandbox.sh UNIT
set -eu
unit=$1
no() { echo "$unit: $*" >&2; exit 1; }

score=$(systemd-analyze security --no-pager "$unit" | sed -n 's/.*exposure level for .*: \([0-9.]*\) .*/\1/p')
[ -n "$score" ] || no "has no score"
awk "BEGIN { exit !($score <= 1.5) }" || no "exposure is $score, more than 1.5"

pid=$(systemctl show -P MainPID "$unit")
[ "$pid" -gt 1 ] || exit 0 # a unit that has done its work
[ "$(stat -c %u "/proc/$pid")" != 0 ] || no "runs as root"
grep -q '^NoNewPrivs:.1$' "/proc/$pid/status" || no "may gain privileges"
grep -q '^Seccomp:.2$' "/proc/$pid/status" || no "has no system call filter"
grep -q '^CapBnd:.0000000000000000$' "/proc/$pid/status" || no "has capabilities in reach"

# In its file system, as its user: nothing may be written but its own state, and others' secrets are not there.
user=$(systemctl show -P User "$unit")
inside() { nsenter --target "$pid" --mount -- setpriv --reuid "$user" --regid "$user" --clear-groups -- "$@" 2>/dev/null; }
as_root() { nsenter --target "$pid" --mount -- "$@" 2>/dev/null; }
for place in /etc /usr /opt/spva /var/lib /home /boot; do
    if as_root touch "$place/.sandbox"; then no "$place can be written to"; fi
done
if as_root ls /etc/spva/credentials | grep . >/dev/null; then no "sees the credentials of all services"; fi
if as_root test -e /dev/sda -o -e /dev/mem; then no "sees devices"; fi
if inside test -r /etc/shadow; then no "reads /etc/shadow"; fi
state=$(systemctl show -P StateDirectory "$unit" | cut -d' ' -f1)
inside test -w "/var/lib/$state" || no "cannot write its own state"
for other in /var/lib/spva/*/; do
    case $other in /var/lib/spva/ioc/ | /var/lib/spva/gateway/ | /var/lib/spva/keychain/ | "/var/lib/$state/") continue ;; esac
    if inside test -r "$other"; then no "reads the state of another service: $other"; fi
done
