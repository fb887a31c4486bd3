#!/bin/sh
# A certificate of its own for the database's host: certificate.sh DIRECTORY NAME...
# Prints "made" if there was none, or one for other names, or one that ends in less than 90 days.
set -eu
home=$1
shift
names=
for name; do
    case $name in
        *:* | [0-9]*.[0-9]*.[0-9]*.[0-9]*) names=$names,IP:$name ;;
        *) names=$names,DNS:$name ;;
    esac
done
names=${names#,}
if [ -e "$home/server.crt" ] && [ "$(cat "$home/server.names" 2>/dev/null)" = "$names" ] &&
    openssl x509 -in "$home/server.crt" -noout -checkend 7776000 >/dev/null; then
    exit 0
fi
umask 077
work=$(mktemp -d "$home/.certificate.XXXXXX")
trap 'rm -rf "$work"' EXIT
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=spva-database" -addext "subjectAltName=$names" \
    -addext basicConstraints=critical,CA:FALSE -addext keyUsage=critical,digitalSignature -addext extendedKeyUsage=serverAuth \
    -keyout "$work/server.key" -out "$work/server.crt" 2>/dev/null
printf '%s\n' "$names" >"$work/server.names"
chown postgres:postgres "$work"/*
chmod 644 "$work/server.crt"
for file in server.key server.crt server.names; do mv "$work/$file" "$home/$file"; done
echo made
