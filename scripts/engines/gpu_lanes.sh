#!/usr/bin/env bash
# Several sittings side by side on one host: each lane has its own GPU (or several), server and list of workloads.
#
#   OUT=results scripts/engines/gpu_lanes.sh FILE
#
# FILE names lanes, and under each the runs it makes, one after another; # begins a comment:
#
#   lane 0 qwen3-8b 25516                 GPUs, shape, KV blocks, more flags for vLLM
#   first --workload main --arms none,working_set --limit 200 --no-plot
#   lane 2,3 qwen3-32b 0
#   large --workload main --arms working_set,none --no-plot
#
# Lane n listens on port PORT + n (PORT: 8000), keeps its server's files in RUN-lane-n (RUN: /tmp/vllm) and writes to OUT/lane-n. Servers run on
# and are used again by the next call with the same lane, shape, blocks and flags. TIME_S as in gpu_run.sh.
# `python3 scripts/engines/results.py OUT/lane-*/*.json` makes one table of all lanes.
set -uo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
FILE=${1:?usage: gpu_lanes.sh FILE}
OUT=${OUT:-.} PORT=${PORT:-8000} RUN=${RUN:-/tmp/vllm}
lane=-1 runs=() pids=()

begin() { # the lane read so far, if any
  [ "$lane" -ge 0 ] || return 0
  local name=lane-$lane
  (
    OUT=$OUT/$name PORT=$(( PORT + lane )) GPUS=$gpus RUN=$RUN-$name SERVE_FLAGS=$flags \
      "$HERE/gpu_run.sh" "$shape" "$blocks" "${runs[@]}" 2>&1 | sed -u "s/^/$name: /"
    exit "${PIPESTATUS[0]}"
  ) &
  pids+=($!)
}

while read -r first rest; do
  case $first in
    "" | \#*) ;;
    lane)
      begin
      lane=$(( lane + 1 )) runs=()
      read -r gpus shape blocks flags <<< "$rest"
      ;;
    *) runs+=("$first" "$rest") ;;
  esac
done < "$FILE"
begin
rc=0
for pid in "${pids[@]}"; do wait "$pid" || rc=1; done
exit $rc
