# What the job scripts share. Sourced with the job's words: `. slurm/common.sh "$@"`, from the folder of submission.
#
#   root, first         the run folder; the first node
#   address             prints the first node's address that the others reach
#   see_through PID     waits for the step's srun, hands Slurm's signals on to it, then exits or requeues the job
[ -d .venv/bin ] && export PATH=$PWD/.venv/bin:$PATH
export PIPELINE_ROOT=${PIPELINE_ROOT:-$PWD} OMP_NUM_THREADS=1
root=$(python jobs/run.py --root "$@") || exit # a mistake in the config costs no cluster
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
[ -n "${SLURM_CPUS_PER_TASK:-}" ] && export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun takes it from nowhere else

address() {
  local found
  found=${PIPELINE_HEAD_IP:-$(srun --overlap --mpi=none -N1 -n1 -w "$first" hostname -I | awk '{print $1}')}
  case $found in
    "" | 127.*)
      if [ "$SLURM_JOB_NUM_NODES" != 1 ]; then
        echo "$first has address '$found', which no other node reaches: set PIPELINE_HEAD_IP" >&2
        return 69
      fi
      found=127.0.0.1 ;;
  esac
  echo "$found"
}

# Only the batch shell is told by Slurm, early and more than once; srun hands USR2 on to every process of its step.
see_through() {
  local step=$1 code asked=0
  trap 'asked=1; kill -USR2 "$step" 2>/dev/null' USR1 USR2 TERM
  while kill -0 "$step" 2>/dev/null; do wait "$step"; done
  wait "$step"
  code=$?
  # Killed while asked to stop: not saved in time, or not yet able to; the last checkpoint is good either way.
  if [ $code = 75 ] || [ $code = 69 ] || { [ $asked = 1 ] && [ $code -gt 128 ]; }; then
    python -m pipeline.placement.slurm "$root" || exit
    # Nothing runs after this: Slurm ends the batch shell.
    scontrol requeue "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
  fi
  exit $code
}
