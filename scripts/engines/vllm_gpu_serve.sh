#!/usr/bin/env bash
# Start vLLM on a GPU with random weights of a published model shape, on the loopback interface only.
#
#   scripts/engines/vllm_gpu_serve.sh [SHAPE] [BLOCKS] [extra vllm flags]
#
# SHAPE: qwen3-8b (default) or qwen3-32b, see make_model.py. BLOCKS: KV blocks of 16 tokens; 0: all that fits.
# Needs `vllm` on the PATH. Several servers of one host stay apart by PORT:
# PORT  where it listens (8000)
# GPUS  which GPUs it gets, by number, comma-separated; the model is split over them (all visible ones, unsplit)
# RUN   a folder for the model, the log (vllm.log), the process group (vllm.pid) and compiled code (/tmp/vllm-PORT)
# WAIT  seconds until it must be up (300)
# Returns once /health answers; the server runs on. Stop it: kill -- -$(cat RUN/vllm.pid)
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
SHAPE=${1:-qwen3-8b} BLOCKS=${2:-0}
shift $(( $# < 2 ? $# : 2 ))
PORT=${PORT:-8000} GPUS=${GPUS:-} WAIT=${WAIT:-300}
RUN=${RUN:-/tmp/vllm-$PORT}

mkdir -p "$RUN"
model=$RUN/model-$SHAPE
[ -f "$model/tokenizer.json" ] || python3 "$HERE/make_model.py" "$SHAPE" "$model"
own=()
[ "$BLOCKS" = 0 ] || own+=(--num-gpu-blocks-override "$BLOCKS")
if [ -n "$GPUS" ]; then
  export CUDA_VISIBLE_DEVICES=$GPUS
  split=$(tr , '\n' <<< "$GPUS" | wc -l)
  [ "$split" = 1 ] || own+=(--tensor-parallel-size "$split")
fi
# VLLM_SERVER_DEV_MODE gives POST /reset_prefix_cache
VLLM_CACHE_ROOT=$RUN/cache HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_SERVER_DEV_MODE=1 \
  setsid nohup vllm serve "$model" --served-model-name dummy --load-format dummy --dtype bfloat16 \
  --host 127.0.0.1 --port "$PORT" --max-model-len 32768 --enable-prefix-caching --enable-prompt-tokens-details \
  --disable-uvicorn-access-log "${own[@]}" "$@" > "$RUN/vllm.log" 2>&1 < /dev/null &
echo $! > "$RUN/vllm.pid"
for _ in $(seq "$WAIT"); do
  if python3 -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$PORT/health', timeout=2)" 2> /dev/null; then
    echo "http://127.0.0.1:$PORT"
    exit 0
  fi
  kill -0 "$(cat "$RUN/vllm.pid")" 2> /dev/null || break
  sleep 1
done
echo "vLLM did not come up; the end of $RUN/vllm.log:" >&2
tail -60 "$RUN/vllm.log" >&2
kill -- -"$(cat "$RUN/vllm.pid")" 2> /dev/null || true
exit 1
