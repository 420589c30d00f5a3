#!/usr/bin/env bash
# A whole run on a lent machine where one command may take ten minutes: training, bundle, golden values, evaluation, bars. It goes
# on in a process session of its own; each command returns what there is so far.
#
#   training/unattended.sh start DATA SECONDS OUT [WAIT]   DATA: folder of training.pack; SECONDS: of training; begins, then waits
#   training/unattended.sh wait OUT [WAIT]                 waits WAIT seconds (540) or until all is done, then fills OUT
#
# OUT then holds train.log, run.log, the bundle in two parts (cat model.? > model.safetensors), results and the table. While training
# goes on, the bundle is that of the last checkpoint: `INITIAL=that bundle SPENT=its seconds` begins again from it elsewhere.
# Environment: RUN (folder on the machine), INITIAL (bundle to begin with), SPENT, OPTIONS (of training.train), GPUS, SIZES.
set -uo pipefail
RUN=${RUN:-/tmp/mneme-run}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Everything, one step after the other; "done" in the log ends it. Runs in a copy of the repository.
whole_run() {
  local data=$1 seconds=$2 initial=${INITIAL:-models/mneme-small} gpus=${GPUS:-$(nvidia-smi -L 2>/dev/null | wc -l)}
  [ "$gpus" -ge 1 ] || gpus=1
  echo "$(date +%T) $gpus GPUs"
  mkdir -p prepared eval out
  python3 -m unittest training.tests.test_triton > out/kernels.log 2>&1 &     # compiling takes as long as unpacking
  local kernels=$! plain=
  python3 -m training.pack --unpack "$data" prepared eval || { echo "failed: data"; return 1; }
  wait "$kernels" || { plain=--plain; echo "kernels are wrong here, without them:"; tail -5 out/kernels.log; }
  local workers=$(($(nproc) / gpus - 2))
  [ "$workers" -ge 1 ] || workers=0
  # A second attempt goes on from the first one's checkpoint; it may be the kernels that it could not go on with.
  for attempt in 1 2; do
    [ "$attempt" = 1 ] || plain=--plain
    echo "$(date +%T) training, attempt $attempt"
    launch "$gpus" -m training.train prepared checkpoint --seconds "$seconds" --initial "$initial" --spent "${SPENT:-0}" \
      --workers "$workers" --save-every 60 --profile out/profile.txt --matrix-rate 0.006 --other-rate 6e-4 $plain ${OPTIONS:-} >> out/train.log 2>&1 && break
    tail -5 out/train.log
  done
  export_bundle bundle || { echo "failed: no checkpoint"; return 1; }
  echo "$(date +%T) bundle"
  cp bundle/config.json out/
  evaluate_all "$gpus"
  python3 -m training.bundle --golden-of bundle --golden out/golden.safetensors
  echo "$(date +%T) done"
}

launch() {
  local count=$1
  shift
  if [ "$count" -gt 1 ]; then python3 -m torch.distributed.run --nproc-per-node "$count" "$@"; else python3 "$@"; fi
}

# The last checkpoint as a bundle in folder $1, and in two parts in out/, but a partial one not in place of the last.
export_bundle() {
  python3 -m training.bundle checkpoint prepared "$1.new" && rm -rf "$1" && mv "$1.new" "$1" || return 1
  if [ "$1" = bundle ] || [ ! -e bundle ]; then split -b 14680064 -a 1 "$1/model.safetensors" out/model.; fi
}

# Needles on the last GPU, all else on the first, at the same time where there is room for both. The longest memories come last.
evaluate_all() {
  local gpus=$1 other=(eval/other/*)
  [ -e "${other[0]}" ] || other=()
  python3 - <<'PYTHON'
import random
random.seed(0)
open('dna.txt', 'w').write(''.join(random.choice('ACGT') for _ in range(400_000)))
PYTHON
  CUDA_VISIBLE_DEVICES=0 python3 -m training.evaluate bundle prepared eval out/a.json --sizes ${DENSE:+--dense $DENSE} \
    --other dna.txt "${other[@]}" > out/a.log 2>&1 &
  local first=$! mib
  mib=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits -i 0)
  [ "$gpus" -gt 1 ] || [ "${mib:-0}" -gt 130000 ] || wait "$first"
  CUDA_VISIBLE_DEVICES=$((gpus - 1)) python3 -m training.evaluate bundle prepared eval out/b.json --dense --dense-fresh --dense-blind --sets --perplexity \
    --sizes ${SIZES:-64K 1M 16M 64M 256M} > out/b.log 2>&1 &
  wait "$first" $!
  tail -n 2 out/a.log out/b.log
  python3 -m training.report out/a.json out/b.json --join --plot out/result.svg --summary out/result.json > out/table.md
  python3 -m training.bars out/a.json out/b.json | tee out/bars.txt
}

# Waits, then copies what is there. At most 8 files: config, logs as one, bundle (2), results (2), golden, table and bars as one.
wait_and_copy() {
  [ -e "$RUN/run.log" ] || { echo "no run in $RUN: another machine than the one that began it?"; return 1; }
  mkdir -p "$1" || return 1
  local out until=$(($(date +%s) + ${2:-540}))
  out=$(cd "$1" && pwd)
  while [ "$(date +%s)" -lt "$until" ] && ! grep -qE '^[0-9:]+ done$|^failed' "$RUN/run.log" 2>/dev/null; do
    sleep 2
    copy_results "$out"
  done
  cd "$RUN/repository" || return 1
  if ! grep -qE '^[0-9:]+ bundle$' "$RUN/run.log" && [ -e checkpoint/progress.json ]; then
    CUDA_VISIBLE_DEVICES= nice -n 5 bash -c "$(declare -f export_bundle); export_bundle partial" >> "$RUN/partial.log" 2>&1
    cp partial/config.json out/
    cat checkpoint/progress.json
  fi
  copy_results "$out"
  tail -n 3 out/train.log | cut -c1-900
  cat "$RUN/run.log"
}

copy_results() {
  local from=$RUN/repository/out
  [ -d "$from" ] || return 0
  cat "$RUN/run.log" "$from"/*.log > "$1/all.log" 2>/dev/null
  cat "$from"/bars.txt "$from"/table.md "$from"/profile.txt > "$1/table.txt" 2>/dev/null
  cp -u "$from"/model.? "$from"/config.json "$from"/*.json "$from"/golden.safetensors "$1/" 2>/dev/null
  rm -f "$1/result.json"                       # made again of a.json and b.json
}

case ${1:-} in
  run) whole_run "$2" "$3" ;;
  start)
    mkdir -p "$RUN/repository" && cp -r "$here/training" "$here/models" "$RUN/repository/" && cp -r "$2" "$RUN/data" || exit 1
    : > "$RUN/run.log"                           # what follows looks for it at once
    (cd "$RUN/repository" && setsid bash training/unattended.sh run "$RUN/data" "$3" > "$RUN/run.log" 2>&1 < /dev/null &)
    wait_and_copy "$4" "${5:-540}"
    ;;
  wait) wait_and_copy "$2" "${3:-540}" ;;
  *) sed -n '2,14p' "${BASH_SOURCE[0]}"; exit 2 ;;
esac
