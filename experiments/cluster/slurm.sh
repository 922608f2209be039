#!/bin/bash
# A run on several nodes under SLURM, which begins again by itself where its time was over:
#   sbatch experiments/cluster/slurm.sh experiments/cifar100/full.yaml
# Two minutes before the end SLURM tells this script, and not its tasks (B:), which puts the job back into the queue. The
# same command then goes on from the end of the last epoch, bit for bit. Give partition and account by sbatch's options.
#SBATCH --job-name=certvae
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
trap 'scontrol requeue "$SLURM_JOB_ID"' USR1

# OMP_WAIT_POLICY: threads that wait do not spin. The folder of the run must be on a disk that every node sees.
OMP_WAIT_POLICY=PASSIVE srun certvae fit --config "$1" \
  --trainer.num_nodes "$SLURM_NNODES" --trainer.devices "$SLURM_NTASKS_PER_NODE" --trainer.strategy ddp \
  --ckpt_path last "${@:2}" &
task=$!
wait "$task"
status=$?
while [ "$status" -gt 128 ] && kill -0 "$task" 2>/dev/null; do # the signal ended the wait, and not the task
  wait "$task"
  status=$?
done
exit "$status"
