#!/usr/bin/env bash
# Tries the orchestrator's Slurm engine on a throw-away Slurm of two nodes, both this machine, in a temporary folder: a
# task is submitted, stopped, preempted on two nodes by a more urgent job, and goes on to its end.
#
#   scripts/engines/try_slurm_engine.sh   # a minute or two; KEEP=1 leaves the folder
#
# Needs what throwaway_slurm.sh says, and the environment of `make venv`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# shellcheck disable=SC2034 # what the sourced script reads
nodes=2 gpus=2
# shellcheck source=scripts/engines/throwaway_slurm.sh
source scripts/engines/throwaway_slurm.sh
# shellcheck disable=SC2034
told=$folder/job/attempt-2.log

urgent="sbatch --quiet --partition=urgent --nodes=2 --ntasks-per-node=1 --gpus-per-node=2 --output=$folder/urgent.out \
--wrap='srun sleep 1'"
PYTHONPATH=$PWD "$python" scripts/engines/try_engine.py slurm --folder "$folder" --preempt "$urgent"
