#!/bin/bash
# SLURM job that runs one asc-tune study on several machines. Before its time limit the job is requeued, and then it
# continues the study.
#
#     sbatch tune/cluster/slurm.sh --space kd_prune --name X --storage /shared/runs --dataset_dir=/shared/tau profile=full
#
# Run it from the checkout, which must have the same path on all machines, with its virtual environment in .venv (or set
# ASC_TUNE_VENV to another). All arguments after the script's name are passed to tune/run.py. Edit the #SBATCH lines, or
# override them with sbatch's flags: sbatch --nodes=4 --time=8:00:00 tune/cluster/slurm.sh ...
#
# Two minutes before the time limit SLURM sends USR1 to this script, which stops the driver in order and requeues the
# job (the driver is the process of tune/run.py). TERM (scancel) stops the driver, too, but the job is not requeued.
#SBATCH --job-name=asc-tune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=asc-tune-%j.log
set -u

case "${SLURM_JOB_ID:?is not set, use sbatch}" in
  *[!0-9]*)
    echo "asc-tune: SLURM_JOB_ID is '$SLURM_JOB_ID'; expected a number: submit this script with sbatch"
    exit 2
    ;;
esac
cd -- "${SLURM_SUBMIT_DIR:-$PWD}" || exit 2
PATH="${ASC_TUNE_VENV:-$PWD/.venv}/bin:$PATH"
export PATH

# only processes with this token can connect to Ray; all machines read it from its file in the shared home directory
export RAY_AUTH_MODE=token
(umask 077 && ray get-auth-token --generate > /dev/null 2>&1 && chmod 600 "$HOME/.ray/auth_token") || {
  echo "asc-tune: cannot create a Ray token in $HOME/.ray: make this folder writable, then submit the job again"
  exit 2
}
export PYTHONSAFEPATH=1 # Ray's processes must not import modules from the current folder
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

# this script runs on the job's first machine; each job has its own port, because other jobs may run Ray there
address="${ASC_TUNE_HEAD_IP:-$(hostname -I | cut -d ' ' -f 1)}:$((20000 + 10#$SLURM_JOB_ID % 10000))"
# a new folder that only this user can enter, so that nobody else can write the process id in it
private=$(mktemp -d "${TMPDIR:-/tmp}/asc-tune.XXXXXXXXXX") || {
  echo "asc-tune: no folder can be created in ${TMPDIR:-/tmp}: free some space there, or set TMPDIR to another folder"
  exit 2
}
trap 'rm -rf -- "$private"' EXIT
pid_file="$private/driver.pid"

requeue=no
# shellcheck disable=SC2329  # the traps call it
stop_driver() {
  echo "asc-tune: SLURM stops the job: stopping the study in order (requeue the job: $requeue)"
  # signal only the driver's process: SLURM's signals to a step would also reach Ray's processes
  kill -TERM "$(cat "$pid_file" 2> /dev/null)" 2> /dev/null || kill -TERM "$step"
}
trap 'requeue=yes; stop_driver' USR1
trap stop_driver TERM

# shellcheck disable=SC2016  # `bash -c` expands $$, $0, ...: it writes its process id, then becomes the driver
srun --kill-on-bad-exit=0 ray symmetric-run --address "$address" --min-nodes "${SLURM_JOB_NUM_NODES:-1}" \
  --num-cpus "${SLURM_CPUS_PER_TASK:-1}" -- \
  bash -c 'echo $$ > "$0"; exec python tune/run.py --address "$1" --resume auto "${@:2}"' "$pid_file" "$address" "$@" &
step=$!
wait "$step"
status=$?
while kill -0 "$step" 2> /dev/null; do # `wait` returned because of a signal; the step still runs
  wait "$step"
  status=$?
done

if [ "$requeue" = yes ] && [ "$status" -ne 0 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
