#!/usr/bin/env bash
# Makes .venv-reference: PyTorch, transformers, peft and TRL, which the parity tests compare with.
# Runs again only where something changed. PYTHON=/path/to/python overrides the choice of interpreter.
set -euo pipefail

cd "$(dirname "$0")/../.."
folder=.venv-reference
stamp=$folder/made-from
packages=(torch==2.13.0 transformers==5.23.0 peft==0.21.2 trl==1.16.0 bitsandbytes==0.50.2 compressed-tensors==0.20.1 gguf accelerate)

works() {
  command -v "$1" >/dev/null && "$1" -c 'import sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

python=
for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3.10 python3 python}; do
  if works "$candidate"; then
    python=$candidate
    break
  fi
done
if [[ -z $python ]]; then
  echo "make_reference_env: no Python >= 3.10 with venv found (tried ${PYTHON:-python3.11 and others})" >&2
  exit 2
fi

wanted="$("$python" --version) ${packages[*]}"
if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then
  echo "make_reference_env: $folder is up to date"
  exit 0
fi

rm -rf "$folder"
"$python" -m venv "$folder"
"$folder/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check "${packages[@]}"
"$folder/bin/python" -c 'import accelerate, bitsandbytes, compressed_tensors, gguf, peft, torch, transformers, trl'
echo "$wanted" >"$stamp"
echo "make_reference_env: made $folder with $wanted"
