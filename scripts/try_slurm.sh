#!/usr/bin/env bash
# Tries scripts/launch/slurm.sbatch on a throw-away Slurm of one node, this machine, in a temporary folder: two tasks
# train a tiny model together, are warned by a signal, later preempted by a more urgent job, go on and end well.
#
#   scripts/try_slurm.sh          # a minute or two; KEEP=1 leaves the folder
#
# Needs Debian's packages slurm-wlm and munge, and the environment of `make venv`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:/usr/sbin

fail() {
  echo "try_slurm: error: $1" >&2
  exit "${2:-1}"
}

for program in sbatch scontrol squeue scancel srun slurmctld slurmd munged; do
  command -v "$program" >/dev/null || fail "'$program' is not installed, expected Debian's slurm-wlm and munge" 2
done
python=$PWD/.venv/bin/python
[[ -x $python ]] || fail "$python does not exist, expected the environment of 'make venv'" 2

folder=$(mktemp -d /tmp/try_slurm.XXXXXX)
daemons=()
tear_down() {
  code=$?
  trap - EXIT
  if [[ -n ${job:-} ]]; then scancel --quiet "$job" || true; fi
  for pid in "${daemons[@]}"; do
    kill "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  if ((code)) && [[ -s $folder/job.out ]]; then
    tail -n 40 "$folder/job.out" >&2
  fi
  if [[ -n ${KEEP:-} ]]; then echo "try_slurm: kept $folder"; else rm -rf "$folder"; fi
  exit "$code"
}
trap tear_down EXIT
trap 'exit 130' INT TERM

start() { # the daemon's name, its command
  "${@:2}" >"$folder/$1.out" 2>&1 &
  daemons=("$!" "${daemons[@]}")
}

until_true() { # seconds, what is waited for, a command
  local deadline=$((SECONDS + $1))
  until "${@:3}" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || fail "$2: not after $1 s"
    sleep 0.2
  done
}

free_port() {
  "$python" -c 'import socket; one = socket.socket(); one.bind(("127.0.0.1", 0)); print(one.getsockname()[1])'
}

# 1. A cluster: one node with two CPUs, and a partition whose jobs come before those of the other.
mkdir -m 755 "$folder"/{munge,state,spool}
chmod 755 "$folder"
(umask 077 && head -c 1024 /dev/urandom >"$folder/munge/key")
cat >"$folder/slurm.conf" <<END
ClusterName=try
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SchedulerParameters=bf_interval=1,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=localhost NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=usual Nodes=ALL Default=YES PriorityTier=1 GraceTime=120
PartitionName=urgent Nodes=ALL PriorityTier=2
END
export SLURM_CONF=$folder/slurm.conf
start munged munged --foreground --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
  --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
until_true 10 "a socket of munged" test -S "$folder/munge/socket"
start slurmctld slurmctld -D
start slurmd slurmd -D -N localhost
node_is() { [[ $(sinfo --noheader --format=%t --partition=usual) == "$1" ]]; }
until_true 30 "a node that is idle" node_is idle

# 2. A run of two processes with one CPU device each.
for number in {1..400}; do echo "$number and $((number + 1)) are $((2 * number + 1))."; done >"$folder/text.txt"
cat >"$folder/twist.yaml" <<END
output_dir: $folder/run
model: {model_name_or_path: configs/tiny, random_init: true}
data: {train: $folder/text.txt, max_length: 32, validation_samples: 4}
subnetworks: {workers: 2, kappa: 0.5, block: 16}
training: {local_steps: 2, batch_size: 2, train_samples: 2400}
evaluation: {every: 150, tickets: 1}
checkpoint_rounds: 50
END
export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=1 JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo TRANSFORMERS_VERBOSITY=error
export JAX_COMPILATION_CACHE_DIR=$folder/xla JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
export OMP_NUM_THREADS=1
job=$(sbatch --parsable --nodes=1 --ntasks-per-node=2 --gpus-per-node=0 --cpus-per-task=1 --time=15 \
  --output="$folder/job.out" scripts/launch/slurm.sbatch "$python" -m twistjax train "$folder/twist.yaml")

shows() { [[ $(scontrol --oneliner show job "$job") == *" $1 "* ]]; }
trained() { [[ $(wc -l <"$folder/run/metrics.jsonl") -gt $1 ]]; }
says() { [[ $(grep -c "$1" "$folder/job.out") -ge $2 ]]; }

# 3. A signal, as before the end of the time.
until_true 240 "a run that trains" trained 5
scancel --signal=USR1 "$job"
until_true 120 "queued again after a signal" shows Restarts=1
echo "try_slurm: after SIGUSR1 the job is queued again ($(grep -o 'go on from round .*' "$folder/job.out"))"
until_true 240 "going on after a signal" says "going on from round" 1

# 4. A more urgent job takes its place.
until_true 120 "a run that trains again" trained "$(($(wc -l <"$folder/run/metrics.jsonl") + 5))"
sbatch --quiet --partition=urgent --nodes=1 --ntasks=2 --output="$folder/urgent.out" --wrap="sleep 2"
until_true 180 "queued again after preemption" shows Restarts=2
round=$(grep -o 'go on from round .*' "$folder/job.out" | tail -n 1)
echo "try_slurm: after preemption the job is queued again ($round)"
until_true 240 "going on after preemption" says "going on from round" 2

# 5. The end.
until_true 240 "the end of the run" says "wrote .*report.html" 1
until_true 30 "the end of the job" shows JobState=COMPLETED
shows ExitCode=0:0 || fail "$(scontrol --oneliner show job "$job")"
devices=$("$python" - "$folder/run" <<'END'
import sys
from harness.journal import Journal

with Journal.read(sys.argv[1]) as journal:
    print(", ".join(event.payload["device"] for event in journal.events("run_start")))
END
)
[[ $devices == "2 × cpu, 2 × cpu, 2 × cpu" ]] || fail "devices of the three starts: $devices, expected 2 each time"
[[ -s $folder/run/report.html ]] || fail "the run has no report"
echo "try_slurm: two processes were one run in all three starts ($devices), which ended with exit code 0"

# 6. What a user cancels stays cancelled, though it, too, saves and ends as after a signal.
job=$(sbatch --parsable --nodes=1 --ntasks-per-node=2 --gpus-per-node=0 --cpus-per-task=1 --time=15 \
  --output="$folder/cancelled.out" scripts/launch/slurm.sbatch \
  bash -c "trap 'touch $folder/saved.\$SLURM_PROCID; exit 130' TERM; touch $folder/ready; while :; do sleep 0.2; done")
until_true 30 "a job to cancel" test -e "$folder/ready"
sleep 1
scancel "$job"
until_true 30 "both processes of a cancelled job saving" test -e "$folder/saved.0" -a -e "$folder/saved.1"
until_true 120 "the end of a cancelled job" node_is idle
if ! shows JobState=CANCELLED || ! shows Restarts=0; then fail "$(scontrol --oneliner show job "$job")"; fi
echo "try_slurm: a job that is cancelled saves and stays cancelled"
job=
