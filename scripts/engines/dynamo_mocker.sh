#!/usr/bin/env bash
# NVIDIA Dynamo's mock engine behind its OpenAI frontend: a second opinion on KV capacity, eviction and cached tokens.
#
#   scripts/engines/dynamo_mocker.sh env DIR                 build the environment (about 400 MB, under a minute)
#   scripts/engines/dynamo_mocker.sh run DIR COMMAND...      start the mocker, run COMMAND beside it, stop it again
#
# COMMAND finds the OpenAI endpoint at $ENGINE_URL and the worker's metrics at $ENGINE_METRICS_URL. Both run inside a
# network namespace of their own (unshare -n), because the mocker's event publishers listen on every interface.
# BLOCKS of 16 tokens (600: 9,600 tokens), SPEEDUP of the mocker's clock (1).
# `pip install ai-dynamo` as it stands cannot be resolved (it needs a placeholder package): hence --no-deps.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
VERB=${1:?usage: dynamo_mocker.sh env|run DIR [COMMAND...]}
DIR=${2:?usage: dynamo_mocker.sh env|run DIR [COMMAND...]}
shift 2
DYNAMO=1.6.1

if [ "$VERB" = env ]; then
  [ -x "$DIR/bin/python" ] || "${PYTHON:-python3.11}" -m venv "$DIR"
  pip=("$DIR/bin/python" -m pip --disable-pip-version-check --quiet)
  "${pip[@]}" install "ai-dynamo-runtime==$DYNAMO" pyyaml msgspec packaging numpy
  "${pip[@]}" install --no-deps "ai-dynamo==$DYNAMO"
  "$DIR/bin/python" "$HERE/make_model.py" tiny "$DIR/model"
  # The default timing makes prefill nearly free, and then thrashing looks harmless: give it the times of a small
  # model on a CPU, 5 ms + 0.22 ms for a prompt token and 20 ms for a decode step.
  "$DIR/bin/python" - "$DIR/profile.npz" <<'PY'
import sys
import numpy as np
prompt = np.array([1.0, 128, 512, 2048, 8192])
resident = np.array([0.0, 5_000, 20_000, 80_000])
context = np.array([1.0, 1_000, 4_000, 16_000])
np.savez(sys.argv[1], prefill_isl=prompt, prefill_ttft_ms=5.0 + 0.22 * prompt,
         decode_active_kv_tokens=resident, decode_context_length=context,
         decode_itl=np.full((resident.size, context.size), 20.0))
PY
  echo "$DIR holds Dynamo $DYNAMO"
  exit 0
fi
if [ "${INSIDE_NAMESPACE:-}" != yes ]; then
  INSIDE_NAMESPACE=yes exec unshare -n -- "$0" "$VERB" "$DIR" "$@"
fi

# a fresh namespace has its loopback interface down (0x8914: SIOCSIFFLAGS, 0x41: up and running)
"$DIR/bin/python" -c 'import fcntl, socket, struct
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh", b"lo", 0x41))'
state=$(mktemp -d)
export HF_HUB_OFFLINE=1 DYN_FILE_KV="$state/kv"       # an old registry would list workers that are gone
export DYN_TCP_RPC_HOST=127.0.0.1 DYN_SYSTEM_HOST=127.0.0.1 DYN_EVENT_PLANE_HOST=127.0.0.1
export DYN_TCP_RESPONSE_STREAM_HOST=127.0.0.1
planes=(--discovery-backend file --request-plane tcp --event-plane zmq)
DYN_SYSTEM_PORT=8211 "$DIR/bin/python" -m dynamo.mocker --model-path "$DIR/model" --model-name tiny \
  --num-gpu-blocks-override "${BLOCKS:-600}" --block-size 16 --max-num-seqs 64 --max-num-batched-tokens 2048 \
  --speedup-ratio "${SPEEDUP:-1}" --planner-profile-data "$DIR/profile.npz" "${planes[@]}" > "$DIR/mocker.log" 2>&1 &
mocker=$!
"$DIR/bin/python" -m dynamo.frontend --http-host 127.0.0.1 --http-port 8210 --router-mode round-robin \
  "${planes[@]}" > "$DIR/frontend.log" 2>&1 &
frontend=$!
trap 'kill $mocker $frontend 2> /dev/null || true; wait; rm -rf "$state"' EXIT
export ENGINE_URL=http://127.0.0.1:8210 ENGINE_METRICS_URL=http://127.0.0.1:8211/metrics
for _ in $(seq 240); do
  if "$DIR/bin/python" -c "import sys, urllib.request as u
sys.exit(b'tiny' not in u.urlopen('$ENGINE_URL/v1/models', timeout=2).read())" 2> /dev/null; then
    "$@"
    exit $?
  fi
  sleep 0.25
done
echo "the mocker did not come up; see $DIR/mocker.log and $DIR/frontend.log" >&2
exit 1
