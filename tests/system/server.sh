# shellcheck shell=bash
# For the scripts beside it: a server of their own, on free ports of the loopback, ended with the script.
#   start_server PROGRAM_DIR DATA_DIR [FLAG...]   sets MNEME_ADDRESS (gRPC) and http_address
#   stop_server                                   SIGTERM; fails unless the server ends with status 0

temporary=$(mktemp -d)
server_pid=

cleanup() {
  local status=$?
  if [ -n "$server_pid" ]; then
    kill -KILL "$server_pid" 2>/dev/null || true
    wait "$server_pid" 2>/dev/null || true
  fi
  if [ "$status" != 0 ] && [ -s "$temporary/server.log" ]; then
    echo "-- the server's log:" >&2
    tail -n 40 "$temporary/server.log" >&2
  fi
  rm -rf "$temporary"
}
trap cleanup EXIT

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

start_server() {
  local program_dir=$1 data_dir=$2 deadline
  shift 2
  rm -f "$temporary/ports"
  "$program_dir/mneme-server" --data-dir "$data_dir" --listen 127.0.0.1:0 --http 127.0.0.1:0 \
    --set "server.port_file=$temporary/ports" "$@" >>"$temporary/server.log" 2>&1 </dev/null &
  server_pid=$!
  deadline=$((SECONDS + 120))
  until grep -qs '^http=' "$temporary/ports"; do
    kill -0 "$server_pid" 2>/dev/null || fail "the server ended at its start"
    [ "$SECONDS" -lt "$deadline" ] || fail "the server did not start within two minutes"
    sleep 0.05
  done
  MNEME_ADDRESS=$(sed -n 's/^grpc=//p' "$temporary/ports")
  http_address=$(sed -n 's/^http=//p' "$temporary/ports")
  export MNEME_ADDRESS http_address
}

stop_server() {
  local pid=$server_pid status=0
  kill -TERM "$pid"
  wait "$pid" || status=$?
  server_pid=
  [ "$status" = 0 ] || fail "the server ended with status $status after SIGTERM"
}
