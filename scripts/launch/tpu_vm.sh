#!/usr/bin/env bash
# One run on all workers of a Cloud TPU VM slice: copies files, installs the project, starts the same command on each.
#
#   SOURCE=dist/altojax-0.1.0-py3-none-any.whl FILES="small.yaml books.txt" \
#     scripts/launch/tpu_vm.sh my-slice us-east5-b twistjax train small.yaml
#
# Keep the shell open, as in tmux. To stop with a checkpoint, send SIGINT to the program on one worker:
#
#   gcloud compute tpus tpu-vm ssh my-slice --zone=us-east5-b --worker=0 --command="pkill -INT twistjax"
set -euo pipefail

source=${SOURCE:-}         # a wheel here, or a git address with a revision: git+https://HOST/PATH@REVISION
files=${FILES:-}           # files and folders here, in one line, that every worker needs: configs, data
folder=${FOLDER:-altojax}  # on the workers: where files are put and the command is run; may be a mounted file system
port=${PORT:-8482}         # of the first worker, where the others find it

fail() {
  echo "tpu_vm: error: $1" >&2
  exit 2
}

(($# >= 3)) || fail "given $# arguments, expected NAME ZONE COMMAND: my-slice us-east5-b twistjax train small.yaml"
name=$1 zone=$2
shift 2
[[ $name =~ ^[a-z][-a-z0-9]*$ ]] || fail "NAME: given '$name', expected that of a TPU VM: small letters, digits, -"
[[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] || fail "ZONE: given '$zone', expected one such as us-east5-b"
[[ $1 == altojax || $1 == twistjax ]] || fail "COMMAND: given '$1', expected altojax or twistjax and its arguments"
case $source in
  git+*) ;;
  *.whl) [[ -f $source ]] || fail "SOURCE: no file '$source', expected a wheel: pip wheel --no-deps -w dist ." ;;
  *) fail "SOURCE: given '$source', expected a wheel (.whl) or git+https://…" ;;
esac
command -v gcloud >/dev/null || fail "'gcloud' is not installed, expected Google Cloud's command line"

on_all() {
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

read -ra copied <<<"$files"
for file in "${copied[@]}"; do
  [[ -e $file ]] || fail "FILES: no file or folder '$file'"
done
requirement="altojax[tpu] @ $source"
if [[ $source == *.whl ]]; then
  copied+=("$source")
  requirement="./$(basename "$source")[tpu]"
fi

# The image's own Python is older than what the project needs; uv brings one.
on_all "mkdir -p $(printf %q "$folder")"
if ((${#copied[@]})); then
  gcloud compute tpus tpu-vm scp --recurse "${copied[@]}" "$name:$folder/" --zone="$zone" --worker=all
fi
on_all "cd $(printf %q "$folder") && PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv \
&& python3 -m uv venv --quiet --allow-existing --python 3.12 ~/.altojax \
&& python3 -m uv pip install --quiet --python ~/.altojax/bin/python $(printf %q "$requirement")"

code=0
command=$(printf ' %q' "$@")
on_all "cd $(printf %q "$folder") && PATH=~/.altojax/bin:\$PATH JAX_COORDINATOR_PORT=$port$command" || code=$?
if ((code && code != 2)); then
  state=$(gcloud compute tpus tpu-vm describe "$name" --zone="$zone" --format='value(state)' || echo gone)
  if [[ $state == READY ]]; then
    echo "tpu_vm: ended with exit code $code; run the same command again to resume from the last checkpoint" >&2
  else
    echo "tpu_vm: $name is ${state,,}: make it again, give it the disk that holds output_dir," \
      "and run the same command to resume from the last checkpoint" >&2
  fi
fi
exit "$code"
