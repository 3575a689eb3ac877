#!/usr/bin/env bash
# Makes .venv-transformers4: transformers 4.57 and what it needs otherwise than transformers 5, for one test.
# The reference environment has to be there; its interpreter finds this folder where PYTHONPATH names it.
set -euo pipefail

cd "$(dirname "$0")/../.."
folder=.venv-transformers4
packages=(transformers==4.57.6 huggingface-hub==0.36.2 tokenizers==0.22.2)

if [[ ! -x .venv-reference/bin/python ]]; then
  echo "make_transformers4: no .venv-reference, expected it: make reference makes it" >&2
  exit 2
fi
if [[ -f $folder/made-from && $(<"$folder/made-from") == "${packages[*]}" ]]; then
  echo "make_transformers4: $folder is up to date"
  exit 0
fi

rm -rf "$folder" "$folder.partial"
pip=(.venv-reference/bin/python -m pip install --quiet --no-compile --disable-pip-version-check)
"${pip[@]}" --no-deps --target "$folder.partial" "${packages[@]}"
PYTHONPATH=$folder.partial .venv-reference/bin/python -c 'import peft, transformers; assert transformers.__version__[0] == "4"'
echo "${packages[*]}" >"$folder.partial/made-from"
mv "$folder.partial" "$folder"
echo "make_transformers4: made $folder with ${packages[*]}"
