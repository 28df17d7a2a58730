#!/usr/bin/env bash
# One sitting on a GPU: have a server of the shape asked for, replay one workload after another, stop in time.
#
#   OUT=results scripts/engines/gpu_run.sh SHAPE BLOCKS NAME "replay options" [NAME "replay options"]...
#
#   scripts/engines/gpu_run.sh qwen3-8b 0 main "--workload main --arms none,fixed:32,working_set --limit 200"
#
# Writes OUT/NAME.json, OUT/NAME.png (unless --no-plot) and OUT/log.txt (tables included). A server of the same shape,
# pool and flags that still runs is used as it is, so that a second sitting need not wait for it.
# TIME_S       everything ends after this many seconds (570); the server runs on
# SERVE_FLAGS  more flags for vLLM
# PORT, GPUS, RUN: see vllm_gpu_serve.sh. Several GPUs at once: gpu_lanes.sh.
set -uo pipefail
SECONDS=0
HERE=$(cd "$(dirname "$0")" && pwd)
OUT=${OUT:-.} TIME_S=${TIME_S:-570}
export PORT=${PORT:-8000}
export RUN=${RUN:-/tmp/vllm-$PORT}
SHAPE=$1 BLOCKS=$2
shift 2
mkdir -p "$OUT" "$RUN"
exec > >(tee -a "$OUT/log.txt") 2>&1

export PYTHONUNBUFFERED=1
wanted="$SHAPE $BLOCKS ${SERVE_FLAGS:-}"
alive() { python3 -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$PORT/health', timeout=2)" 2> /dev/null; }
if ! alive || [ "$(cat "$RUN/served" 2> /dev/null)" != "$wanted" ]; then
  if [ -f "$RUN/vllm.pid" ]; then
    group=$(cat "$RUN/vllm.pid")
    kill -- -"$group" 2> /dev/null
    for _ in $(seq 30); do kill -0 -- -"$group" 2> /dev/null || break; sleep 1; done
  fi
  # shellcheck disable=SC2086
  "$HERE/vllm_gpu_serve.sh" "$SHAPE" "$BLOCKS" ${SERVE_FLAGS:-} || { cp "$RUN/vllm.log" "$OUT/"; exit 1; }
  echo "$wanted" > "$RUN/served"
fi
echo "server $wanted ready at $SECONDS s"
nvidia-smi --query-gpu=index,name,memory.used,memory.total,driver_version --format=csv,noheader || true

export PYTHONPATH=$HERE/../..${PYTHONPATH:+:$PYTHONPATH}
rc=0
while [ $# -ge 2 ]; do
  left=$(( TIME_S - SECONDS ))
  echo "== $1: $2 ($left s left)"
  if [ "$left" -lt 30 ]; then
    echo "not run, out of time: $1"
    rc=1
  else
    # shellcheck disable=SC2086
    python3 -m concur_agents.cli.app replay "http://127.0.0.1:$PORT" $2 --deadline "$left" --out "$OUT/$1.json" || rc=1
  fi
  shift 2
done
grep -E 'KV cache size|Maximum concurrency' "$RUN/vllm.log" | cut -c1-200 | tail -3
echo "over at $SECONDS s"
exit $rc
