#!/usr/bin/env bash
# The real SGLang on a CPU, with a random-weight model.
#
#   scripts/engines/sglang_cpu.sh env DIR VLLM_DIR           build the environment upon one of vllm_cpu_env.sh (0.9 GB more)
#   scripts/engines/sglang_cpu.sh run DIR [SHAPE] COMMAND... start the engine, run COMMAND beside it, stop it again
#
# COMMAND finds the engine at $ENGINE_URL. Both run inside a network namespace of their own (unshare -n), because the
# engine opens a port on every interface. TOKENS in the KV pool (9600). SHAPE: tiny or small, see make_model.py.
# SGLANG_FLAGS: further flags of the engine, such as --enable-session-radix-cache.
# SGLang has no wheel for CPUs: what it imports and needs on GPUs only is stubbed (sglang_stubs.py), and it runs on
# PyTorch's own operators. All versions are pinned, since another one would want other stubs.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
VERB=${1:?usage: sglang_cpu.sh env DIR VLLM_DIR | run DIR [SHAPE] COMMAND...}
DIR=${2:?usage: sglang_cpu.sh env DIR VLLM_DIR | run DIR [SHAPE] COMMAND...}
SGLANG=0.5.23

if [ "$VERB" = env ]; then
  base=$(cd "${3:?usage: sglang_cpu.sh env DIR VLLM_DIR}" && pwd)
  [ -x "$DIR/bin/python" ] || "$base/bin/python" -m venv "$DIR"
  site=$("$DIR/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  "$base/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$site/a_vllm.pth"
  "$DIR/bin/python" -m pip --disable-pip-version-check --quiet install --no-deps "sglang==$SGLANG" gguf==0.19.0 \
    ipython==9.18.1 nvidia-ml-py==13.615.71 orjson==3.13.0 scipy==1.17.1 soundfile==0.13.1 torch_memory_saver==0.0.10 \
    traitlets==5.16.1 zstandard==0.25.0
  cp "$HERE/sglang_stubs.py" "$site/"
  echo "import sglang_stubs" > "$site/z_stubs.pth"
  echo "$DIR holds SGLang $SGLANG"
  exit 0
fi
if [ "${INSIDE_NAMESPACE:-}" != yes ]; then
  INSIDE_NAMESPACE=yes exec unshare -n -- "$0" "$@"
fi

shift 2
SHAPE=small
case ${1:-} in tiny | small) SHAPE=$1; shift ;; esac
# a fresh namespace has its loopback interface down (0x8914: SIOCSIFFLAGS, 0x41: up and running)
"$DIR/bin/python" -c 'import fcntl, socket, struct
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh", b"lo", 0x41))'
model=$DIR/model-$SHAPE
[ -f "$model/tokenizer.json" ] || "$DIR/bin/python" "$HERE/make_model.py" "$SHAPE" "$model"
export HF_HUB_OFFLINE=1 SGLANG_USE_CPU_ENGINE=1 CUDA_VISIBLE_DEVICES="" OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export ENGINE_URL=http://127.0.0.1:8300
PATH="$DIR/bin:$PATH" "$DIR/bin/python" -m sglang.launch_server --model-path "$model" --served-model-name "$SHAPE" \
  --host 127.0.0.1 --port 8300 --device cpu --attention-backend torch_native --sampling-backend pytorch \
  --grammar-backend none --disable-overlap-schedule --skip-server-warmup --load-format dummy --dtype float32 \
  --max-total-tokens "${TOKENS:-9600}" --context-length 4096 --chunked-prefill-size 2048 --enable-metrics \
  --enable-cache-report ${SGLANG_FLAGS:-} > "$DIR/sglang.log" 2>&1 &
server=$!
trap 'kill $server 2> /dev/null || true; wait' EXIT
for _ in $(seq 300); do
  if "$DIR/bin/python" -c "import urllib.request as u; u.urlopen('$ENGINE_URL/health', timeout=2)" 2> /dev/null; then
    "$@"
    exit $?
  fi
  kill -0 $server 2> /dev/null || break
  sleep 1
done
echo "SGLang did not come up; the end of $DIR/sglang.log:" >&2
tail -40 "$DIR/sglang.log" >&2
exit 1
