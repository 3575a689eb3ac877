#!/usr/bin/env bash
# Tries scripts/launch/slurm.sbatch on a throw-away Slurm of one node, this machine, in a temporary folder: two tasks
# train a tiny model together, are warned by a signal, later preempted by a more urgent job, go on and end well.
#
#   scripts/engines/try_slurm.sh          # a minute or two; KEEP=1 leaves the folder
#
# Needs what throwaway_slurm.sh says, and the environment of `make venv`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# 1. A cluster: one node with two CPUs.
# shellcheck disable=SC2034 # what the sourced script reads
nodes=1 gpus=0
# shellcheck source=scripts/engines/throwaway_slurm.sh
source scripts/engines/throwaway_slurm.sh
# shellcheck disable=SC2034
told=$folder/job.out

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
echo "try_slurm: after SIGUSR1 the job is queued again ($(grep -o 'resume from round .*' "$folder/job.out"))"
until_true 240 "resuming after a signal" says "resuming from round" 1

# 4. A more urgent job takes its place.
until_true 120 "a run that trains again" trained "$(($(wc -l <"$folder/run/metrics.jsonl") + 5))"
sbatch --quiet --partition=urgent --nodes=1 --ntasks=2 --output="$folder/urgent.out" --wrap="sleep 2"
until_true 180 "queued again after preemption" shows Restarts=2
round=$(grep -o 'resume from round .*' "$folder/job.out" | tail -n 1)
echo "try_slurm: after preemption the job is queued again ($round)"
until_true 240 "resuming after preemption" says "resuming from round" 2

# 5. The end.
until_true 240 "the end of the run" says "wrote .*report.html" 1
until_true 30 "the end of the job" shows JobState=COMPLETED
shows ExitCode=0:0 || fail "$(scontrol --oneliner show job "$job")"
devices=$("$python" - "$folder/run" <<'END'
import sys
from jaxrun.store.journal import Journal

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
until_true 120 "the end of a cancelled job" all_are idle
if ! shows JobState=CANCELLED || ! shows Restarts=0; then fail "$(scontrol --oneliner show job "$job")"; fi
echo "try_slurm: a job that is cancelled saves and stays cancelled"
job=
