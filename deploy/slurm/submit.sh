#!/bin/bash
# Submits a job: deploy/slurm/submit.sh --dataset imdb, or with other options of python -m producer. From the folder that
# has deploy/, engines/ and output/, which every node sees.
set -euo pipefail

mkdir -p -m 700 run
folder=deploy/slurm
producer=$(sbatch --parsable "$folder/producer.sbatch" "$@")
producer=${producer%%;*}
workers=$(PRODUCER="$producer" sbatch --parsable --export=ALL --dependency="after:$producer" "$folder/workers.sbatch")
verify=$(sbatch --parsable --dependency="afterok:$producer" --kill-on-invalid-dep=yes "$folder/verify.sbatch")
echo "producer $producer, workers ${workers%%;*}, verify ${verify%%;*}; their output is in run/"
