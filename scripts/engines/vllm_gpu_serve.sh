#!/usr/bin/env bash
# Start vLLM on a GPU with random weights of a published model shape, on the loopback interface only.
#
#   scripts/engines/vllm_gpu_serve.sh [SHAPE] [BLOCKS] [extra vllm flags]
#
# SHAPE: qwen3-8b (default) or qwen3-32b, see make_model.py. BLOCKS: KV blocks of 16 tokens; 0: all that fits.
# Needs `vllm` on the PATH. PORT (8000), LOG (/tmp/vllm.log), WAIT seconds (300).
# Returns once /health answers; the server runs on. Stop it: kill -- -$(cat /tmp/vllm.pid)
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
SHAPE=${1:-qwen3-8b} BLOCKS=${2:-0}
shift $(( $# < 2 ? $# : 2 ))
PORT=${PORT:-8000} LOG=${LOG:-/tmp/vllm.log} WAIT=${WAIT:-300}

model=/tmp/model-$SHAPE
[ -f "$model/tokenizer.json" ] || python3 "$HERE/make_model.py" "$SHAPE" "$model"
pool=()
[ "$BLOCKS" = 0 ] || pool=(--num-gpu-blocks-override "$BLOCKS")
# VLLM_SERVER_DEV_MODE gives POST /reset_prefix_cache
HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_SERVER_DEV_MODE=1 \
  setsid nohup vllm serve "$model" --served-model-name dummy --load-format dummy --dtype bfloat16 \
  --host 127.0.0.1 --port "$PORT" --max-model-len 32768 --enable-prefix-caching --enable-prompt-tokens-details \
  --disable-uvicorn-access-log "${pool[@]}" "$@" > "$LOG" 2>&1 < /dev/null &
echo $! > /tmp/vllm.pid
for _ in $(seq "$WAIT"); do
  if python3 -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$PORT/health', timeout=2)" 2> /dev/null; then
    echo "http://127.0.0.1:$PORT"
    exit 0
  fi
  kill -0 "$(cat /tmp/vllm.pid)" 2> /dev/null || break
  sleep 1
done
echo "vLLM did not come up; the end of $LOG:" >&2
tail -60 "$LOG" >&2
kill -- -"$(cat /tmp/vllm.pid)" 2> /dev/null || true
exit 1
