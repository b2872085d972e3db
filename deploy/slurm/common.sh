# What the scripts of this folder share; each of them sources it. Change it to suit the cluster.
# shellcheck shell=bash

cd "$SLURM_SUBMIT_DIR" || exit 1
if [ -f .venv/bin/activate ]; then
    # shellcheck disable=SC1091
    source .venv/bin/activate
fi

# Seen by every node under these paths. EMBEDMILL_OUTPUT may be s3://bucket/prefix too.
export EMBEDMILL_ENGINES="${EMBEDMILL_ENGINES:-$PWD/engines}"
export EMBEDMILL_OUTPUT="${EMBEDMILL_OUTPUT:-$PWD/output}"
# The 120 s of notice in the scripts' --signal, less ten.
export EMBEDMILL_STOP_SECONDS="${EMBEDMILL_STOP_SECONDS:-110}"

# Where Redis is, for the workers of the producer with this job id: an address with a password, so it is this user's
# alone. `ended` once the job is at its end. submit.sh makes the folder.
address_of() {
    printf '%s\n' "run/$1.redis"
}

# Waits, and notices signals at once: bash runs a trap only when a program in the foreground has ended.
nap() {
    sleep "$1" &
    wait $! || true
}
