# shellcheck shell=bash disable=SC2154
# A throw-away Slurm on this machine, in a temporary folder; to be sourced by a script that tries something on it, which
# sets before:
#
#   nodes=2 gpus=2     # nodes and the simulated GPUs of each of them
#
# It leaves SLURM_CONF in the environment, the folder in $folder and two partitions: jobs of `urgent` come before those of
# `usual`, which have a grace time. What the script submits last may stand in $job; what it shows after a failure in $told.
# KEEP=1 leaves the folder. Needs Debian's packages slurm-wlm and munge.
PATH=$PATH:/usr/sbin
me=$(basename "$0" .sh)

fail() {
  echo "$me: error: $1" >&2
  exit "${2:-1}"
}

for program in sbatch scontrol squeue scancel srun slurmctld slurmd munged; do
  command -v "$program" >/dev/null || fail "'$program' is not installed, expected Debian's slurm-wlm and munge" 2
done
python=$PWD/.venv/bin/python
[[ -x $python ]] || fail "$python does not exist, expected the environment of 'make venv'" 2

folder=$(mktemp -d "/tmp/$me.XXXXXX")
daemons=()
tear_down() {
  code=$?
  trap - EXIT
  if [[ -n ${job:-} ]]; then scancel --quiet "$job" || true; fi
  for pid in "${daemons[@]}"; do
    kill "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  if ((code)) && [[ -s ${told:-} ]]; then
    tail -n 40 "$told" >&2
  fi
  if [[ -n ${KEEP:-} ]]; then echo "$me: kept $folder"; else rm -rf "$folder"; fi
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

mkdir -m 755 "$folder"/{munge,state,spool}
chmod 755 "$folder"
(umask 077 && head -c 1024 /dev/urandom >"$folder/munge/key")
cat >"$folder/slurm.conf" <<END
ClusterName=try
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmdTimeout=20
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
ReturnToService=2
SchedulerParameters=bf_interval=1,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=usual Nodes=ALL Default=YES PriorityTier=1 GraceTime=120
PartitionName=urgent Nodes=ALL PriorityTier=2
END
# Processes of several nodes find the first one by its name, so these names are addresses of this machine.
for ((number = 1; number <= nodes; number++)); do
  node="NodeName=127.0.0.$number NodeHostname=localhost NodeAddr=127.0.0.$number Port=$(free_port) CPUs=2"
  ((gpus == 0)) || node+=" Gres=gpu:$gpus"
  echo "$node" >>"$folder/slurm.conf"
  for ((gpu = 0; gpu < gpus; gpu++)); do
    echo "NodeName=127.0.0.$number Name=gpu File=/dev/tty$gpu" >>"$folder/gres.conf"
  done
done
export SLURM_CONF=$folder/slurm.conf
start munged munged --foreground --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
  --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
until_true 10 "a socket of munged" test -S "$folder/munge/socket"
start slurmctld slurmctld -D
for ((number = 1; number <= nodes; number++)); do
  start "slurmd$number" slurmd -D -N "127.0.0.$number"
done
all_are() { [[ $(sinfo --noheader --format="%t %D" --partition=usual) == "$1 $nodes" ]]; }
until_true 30 "$nodes idle nodes" all_are idle
