#!/usr/bin/env bash
# One sitting on a GPU host: have a server of the shape asked for, replay one workload after another, stop in time.
#
#   OUT=results scripts/engines/gpu_run.sh SHAPE BLOCKS NAME "replay options" [NAME "replay options"]...
#
#   scripts/engines/gpu_run.sh qwen3-8b 0 main "--workload main --arms none,fixed:32,working_set --limit 200"
#
# Writes OUT/NAME.json, OUT/NAME.png and OUT/log.txt (tables included). A server of the same shape, pool and flags that
# still runs is used as it is, so that a second sitting need not wait for it.
# TIME_S   everything ends after this many seconds (570); the server runs on
# SERVE    how to start a server: given SHAPE, BLOCKS and SERVE_FLAGS, leaves its process group in /tmp/vllm.pid
#          (default: vllm_gpu_serve.sh beside this file)
# WHEELS   a folder of wheels to unpack for the replay, where the host lacks some and has no network
# SITE     further places to import from, colon-separated
set -uo pipefail
SECONDS=0
HERE=$(cd "$(dirname "$0")" && pwd)
OUT=${OUT:-.} TIME_S=${TIME_S:-570} PORT=${PORT:-8000}
SHAPE=$1 BLOCKS=$2
shift 2
mkdir -p "$OUT"
exec > >(tee -a "$OUT/log.txt") 2>&1

export PYTHONUNBUFFERED=1
wanted="$SHAPE $BLOCKS ${SERVE_FLAGS:-}"
alive() { python3 -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$PORT/health', timeout=2)" 2> /dev/null; }
if ! alive || [ "$(cat /tmp/gpu_run.served 2> /dev/null)" != "$wanted" ]; then
  if [ -f /tmp/vllm.pid ]; then
    kill -- -"$(cat /tmp/vllm.pid)" 2> /dev/null
    for _ in $(seq 30); do kill -0 -- -"$(cat /tmp/vllm.pid)" 2> /dev/null || break; sleep 1; done
  fi
  # shellcheck disable=SC2086
  ${SERVE:-bash "$HERE/vllm_gpu_serve.sh"} "$SHAPE" "$BLOCKS" ${SERVE_FLAGS:-} || { cp /tmp/vllm.log "$OUT/" ; exit 1; }
  echo "$wanted" > /tmp/gpu_run.served
fi
echo "server $wanted ready at $SECONDS s"
nvidia-smi --query-gpu=name,memory.used,memory.total,driver_version --format=csv,noheader || true

if [ -n "${WHEELS:-}" ]; then
  [ -d /tmp/replay-site ] || python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
    --target /tmp/replay-site "$WHEELS"/*.whl || exit 1
  SITE=/tmp/replay-site${SITE:+:$SITE}
fi
export PYTHONPATH=$HERE/../..${SITE:+:$SITE}
rc=0
while [ $# -ge 2 ]; do
  left=$(( TIME_S - SECONDS ))
  echo "== $1: $2 ($left s left)"
  if [ "$left" -lt 30 ]; then
    echo "not run, out of time: $1"
    rc=1
  else
    # shellcheck disable=SC2086
    python3 -m concur_agents.cli.replay "http://127.0.0.1:$PORT" $2 --deadline "$left" --out "$OUT/$1.json" || rc=1
  fi
  shift 2
done
grep -E 'KV cache size|Maximum concurrency' /tmp/vllm.log | cut -c1-200 | tail -3
echo "over at $SECONDS s"
exit $rc
