#!/usr/bin/env bash
# usage: walk.sh PROGRAM_DIR: the README's walk on real programs: create, ingest, search, ask, stop, start, search again, forget,
# delete; and the exit statuses of a failing and of a wrong call.
set -euo pipefail
programs=$1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/system/server.sh
. "$here/server.sh"
mneme() { "$programs/mneme" "$@"; }

# expect PATTERN COMMAND...: the command succeeds and prints a line that matches.
expect() {
  local pattern=$1 out
  shift
  out=$("$@") || fail "'$*' ended with status $?"
  grep -qE -- "$pattern" <<<"$out" || fail "'$*' printed no '$pattern' but: $out"
}
# expect_status STATUS COMMAND...
expect_status() {
  local wanted=$1 status=0
  shift
  "$@" >"$temporary/out" 2>&1 || status=$?
  [ "$status" = "$wanted" ] || fail "'$*' ended with status $status, not $wanted: $(cat "$temporary/out")"
}

for number in $(seq 1 200); do
  echo "Day $number. The ship sailed on, the wind came from the west, and nobody aboard saw land or sail."
  [ "$number" != 97 ] || echo "The captain of the lighthouse boat is called Eleonora Vance, and she keeps a grey parrot."
done >"$temporary/log.txt"

data=$temporary/data
start_server "$programs" "$data"
expect '^mneme-server .*[0-9]+\.[0-9]+' "$programs/mneme-server" --version
mneme create voyages
mneme ingest voyages "$temporary/log.txt" --document log
expect '"durable_bytes": *'"$(wc -c <"$temporary/log.txt")" mneme documents voyages --json
expect 'Eleonora Vance' mneme search voyages "Who is the captain of the lighthouse boat?" -k 3
expect '"byte_begin"' mneme search voyages "Who is the captain of the lighthouse boat?" --json
expect '"answer"' mneme ask voyages "Who is the captain of the lighthouse boat?" --json
expect_status 1 mneme search nowhere "Who?"
expect_status 2 mneme search
stop_server

start_server "$programs" "$data"
expect 'voyages' mneme memories
expect 'Eleonora Vance' mneme search voyages "Who is the captain of the lighthouse boat?" -k 3
mneme show voyages log >"$temporary/shown.txt"
cmp "$temporary/log.txt" "$temporary/shown.txt" || fail "the text that came back is not the text that went in"
mneme forget voyages log
expect_status 1 mneme show voyages log
mneme delete voyages
expect_status 1 mneme search voyages "Who?"
expect 'ready' mneme status
stop_server
echo "the walk went well"
