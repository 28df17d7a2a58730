#!/usr/bin/env bash
# Start the real vLLM on a CPU with a random-weight model, on the loopback interface only.
#
#   scripts/engines/vllm_cpu_serve.sh DIR [SHAPE] [extra vllm flags]
#
# DIR is the environment of vllm_cpu_env.sh; SHAPE is tiny (default) or small, see make_model.py.
# PORT (8100), BLOCKS of 32 tokens in the KV pool (300: 9,600 tokens), LOG (DIR/vllm.log), WAIT seconds (300).
# Returns once /health answers and prints the address; the server runs on. Stop it: kill -- -$(cat DIR/vllm.pid)
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
DIR=$(cd "${1:?usage: vllm_cpu_serve.sh DIR [SHAPE] [flags]}" && pwd)
SHAPE=${2:-tiny}
shift; [ $# -eq 0 ] || shift
PORT=${PORT:-8100} BLOCKS=${BLOCKS:-300} LOG=${LOG:-$DIR/vllm.log} WAIT=${WAIT:-300}

model=$DIR/model-$SHAPE
[ -f "$model/tokenizer.json" ] || "$DIR/bin/python" "$HERE/make_model.py" "$SHAPE" "$model"
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
export VLLM_SERVER_DEV_MODE=1          # gives POST /reset_prefix_cache
export VLLM_CPU_KVCACHE_SPACE=1 VLLM_HOST_IP=127.0.0.1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export PATH="$DIR/bin:$PATH"           # vLLM starts helpers of its own environment
# block size 32: the CPU attention kernel takes multiples of 32 only
setsid nohup "$DIR/bin/vllm" serve "$model" --host 127.0.0.1 --port "$PORT" --served-model-name "$SHAPE" \
  --load-format dummy --dtype float32 --enforce-eager --generation-config vllm \
  --block-size 32 --num-gpu-blocks-override "$BLOCKS" --enable-prefix-caching --enable-prompt-tokens-details \
  --max-model-len 4096 --max-num-batched-tokens 2048 --max-num-seqs 64 "$@" > "$LOG" 2>&1 < /dev/null &
echo $! > "$DIR/vllm.pid"
for _ in $(seq "$WAIT"); do
  if "$DIR/bin/python" -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$PORT/health', timeout=2)" 2> /dev/null; then
    echo "http://127.0.0.1:$PORT"
    exit 0
  fi
  kill -0 "$(cat "$DIR/vllm.pid")" 2> /dev/null || break
  sleep 1
done
echo "vLLM did not come up; the end of $LOG:" >&2
tail -40 "$LOG" >&2
kill -- -"$(cat "$DIR/vllm.pid")" 2> /dev/null || true
exit 1
