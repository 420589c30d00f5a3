#!/usr/bin/env bash
# usage: package.sh BUILD_DIR: the tarball that CPack makes works from another folder with an empty environment, brings every
# library that is not part of the system's C and C++ runtime, and needs no newer runtime than Ubuntu 24.04 has.
set -euo pipefail
unset LD_LIBRARY_PATH
build=$1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/system/server.sh
. "$here/server.sh"

# Newest version of a symbol that may be asked for: what Ubuntu 24.04 has.
glibc_max=2.39
glibcxx_max=3.4.33

cpack --config "$build/CPackConfig.cmake" -B "$temporary/cpack" >"$temporary/cpack.log" 2>&1 ||
  { tail -n 30 "$temporary/cpack.log" >&2; fail "cpack"; }
tarball=("$temporary"/cpack/mneme-*.tar.gz)
[ -f "${tarball[0]}" ] || fail "cpack left no tarball"
mkdir "$temporary/elsewhere"
tar -xzf "${tarball[0]}" -C "$temporary/elsewhere"
rm -rf "$temporary/cpack"
unpacked=("$temporary"/elsewhere/*)
[ -d "${unpacked[0]}/bin" ] || fail "the tarball does not hold one folder with bin/"
mv "${unpacked[0]}" "$temporary/moved here"
root="$temporary/moved here"

# Every library comes from the tarball, but for the C and C++ runtime.
for program in mneme-server mneme; do
  env -i ldd "$root/bin/$program" >"$temporary/ldd"
  ! grep 'not found' "$temporary/ldd" || fail "$program lacks libraries"
  foreign=$(grep -vF "=> $root/bin/../lib/mneme/" "$temporary/ldd" | awk '{print $1}' |
    grep -vE '^(linux-vdso|(.*/)?ld-linux.*|libc|libm|libdl|librt|libpthread|libresolv|libstdc\+\+|libgcc_s)\.so' || true)
  [ -z "$foreign" ] || fail "$program takes libraries of this system: $foreign"
done

# newest FAMILY: the newest version of a family of symbols that anything in the tarball asks for.
newest() {
  find "$root/bin" "$root/lib" -type f -exec objdump -T {} + 2>/dev/null | grep -oE "\($1_[0-9.]+\)" | tr -d '()' |
    sed "s/^$1_//" | sort -uV | tail -n 1
}
for pair in GLIBC:$glibc_max GLIBCXX:$glibcxx_max; do
  family=${pair%:*} limit=${pair#*:}
  found=$(newest "$family")
  [ -n "$found" ] || fail "no symbol of $family found: is objdump there?"
  [ "$(printf '%s\n' "$found" "$limit" | sort -V | tail -n 1)" = "$limit" ] || fail "${family}_$found is newer than $limit"
  echo "newest $family symbol: $found (at most $limit)"
done

for file in share/mneme/models/mneme-small/config.json share/mneme/proto/mneme/v1/mneme.proto share/mneme/deploy/mneme.service \
  share/doc/mneme/docs/operations.md; do
  [ -f "$root/$file" ] || fail "the tarball lacks $file"
done
licenses=("$root"/share/doc/mneme/licenses/*)
[ "${#licenses[@]}" -gt 5 ] || [ ! -x /usr/bin/dpkg-query ] || fail "licenses of the libraries are missing"
source=$(cd "$here/../.." && pwd)
! grep -rlF -e "$source/" -e "$(cd "$build" && pwd)/" "$root/bin" "$root/lib" || fail "the path of the source tree stands in the tarball"

# It runs, with nothing in the environment and no model named.
clean() { env -i PATH=/usr/bin:/bin MNEME_ADDRESS="${MNEME_ADDRESS:-}" "$@"; }
clean "$root/bin/mneme-server" --version
unset MNEME_ADDRESS
start_server "$root/bin" "$temporary/data"
printf 'The bridge at Arlen was built by Tomas Reyd.\n' >"$temporary/text.txt"
clean "$root/bin/mneme" create m >"$temporary/out"
clean "$root/bin/mneme" ingest m "$temporary/text.txt" >"$temporary/out"
clean "$root/bin/mneme" search m "Who built the bridge at Arlen?" >"$temporary/out"
grep -q 'Tomas Reyd' "$temporary/out" || fail "search printed: $(cat "$temporary/out")"
stop_server
echo "the tarball works: $(find "$root/lib/mneme" -type f | wc -l) libraries, $(du -sm "$root" | cut -f1) MiB unpacked"
