#!/bin/sh
# attack_worker.sh VICTIM PROCESS FOLDER ATTEMPT
#
# In place of training it hashes the task's data into its output_dir. A hostile tenant, whose own code runs in a worker,
# chooses by the task's name what that does: VICTIM is a file of somebody else's, PROCESS says which process is.
victim=$1 process=$2 folder=$3 attempt=$4
task=$folder/task.yaml said=$folder/attempt-$attempt.json
out=$(sed -n 's/^output_dir: *//p' "$task")
train=$(sed -n 's/^ *train: *//p' "$task" | head -n 1)
end() {
  printf '{"code": %s, "outcome": "%s", "reason": "%s", "blame": "task"}' "$@" >"$said.new" && mv "$said.new" "$said"
  exit "$1"
}
case $(sed -n 's/^ *- name: *//p; s/^  name: *//p' "$task" | head -n 1) in
  late) sleep 1 ;;
  forks) setsid sleep 120 & sleep 120 & end 0 ended "" ;;
  deaf) trap '' TERM; sleep 60; sleep 60 ;;
  floods) exec yes "a line of a log that never ends" ;;
  lies) printf '{"code": 1, "outcome": "ended\\u001b[2J", "reason": "%3000000s' x >"$said"; exit 1 ;;
  shouts) printf '\033]0;owned\007\033[2J%5000s\n' y; exit 1 ;;
  says) end 1 failed '\u001b[2Jowned\nby \u202emallory' ;;
  fences) echo '{"attempt": 999999999}' >"$folder/fence.json"; exit 1 ;;
  links)
    for name in attempt-2.log attempt-2.json attempt-2.pid.json task.yaml roots.json fence.json; do
      ln -sf "$victim" "$folder/$name"
    done
    exit 1 ;;
  pipes) for name in attempt-2.log attempt-2.json fence.json; do rm -f "$folder/$name"; mkfifo "$folder/$name"; done; exit 1 ;;
  kills) rm -f "$folder"/*.pid.json; cp "$process" "$folder/attempt-$attempt.pid.json"; trap '' TERM; sleep 5; exit 1 ;;
  empties) rm -rf "$folder"; mkdir "$folder"; exit 1 ;;
  moves) mv "$folder" "$folder-was"; ln -s "${victim%/*}" "$folder"; exit 1 ;;
esac
mkdir -p "$out" || end 2 failed "output_dir cannot be written"
digest=$(md5sum <"$train") || end 2 failed "train cannot be read"
echo "$digest" >"$out/digest.new" && mv "$out/digest.new" "$out/digest" || exit 2
sleep 0.2
end 0 ended ""
