#!/usr/bin/env bash
# The containers under fire: three workers, of which while the job runs one is crashed, one is killed by `docker kill`
# with a signal that ends it, and one is taken away by plain `docker kill`.
# Prints what happens and ends with the verifier's table; exit status 0 only if all of it is as it should be.
#
#   usage: bench/compose.sh            needs Docker with docker compose or docker-compose; takes some minutes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
compose() {
    if docker compose version >/dev/null 2>&1; then docker compose "$@"; else docker-compose "$@"; fi
}
say() { printf '\n== %s\n' "$*"; }
workers() { docker ps --all --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" \
    --filter label=com.docker.compose.service=worker --format '{{.Names}}' | sort; }
# Containers name their batches in the log as they commit them.
shards() { for name in $(workers); do docker logs "$name" 2>&1; done | grep -c 'padding computed' || true; }
state() { docker inspect --format '{{.Name}}: {{.State.Status}}, restarted {{.RestartCount}} times' "$@"; }
until_() { for _ in $(seq 1200); do "$@" && return; sleep 0.5; done; echo "it did not happen: $*" >&2; return 1; }

export COMPOSE_PROJECT_NAME=embedmill-under-fire EMBEDMILL_VISIBILITY_TIMEOUT=20
export PRODUCER_OPTIONS="--batch-rows 25 --limit 1500"
up=
trap 'if [ -n "$up" ]; then kill "$up" 2>/dev/null || true; fi; compose down --volumes --timeout 20 >/dev/null 2>&1' EXIT
compose build
compose up --scale worker=3 --exit-code-from verify verify &
up=$!

some() { [ "$(workers | wc -l)" = 3 ] && [ "$(shards)" -ge "$1" ]; }
until_ some 5
read -r crashed aborted taken <<<"$(workers | tr '\n' ' ')"

say "$(shards) of 60 shards; every process of $crashed is killed, as the kernel does when memory runs out"
docker exec "$crashed" python -c 'import os, signal; os.kill(-1, signal.SIGKILL)' || true
back() { [ "$(docker inspect --format '{{.State.Status}} {{.RestartCount}}' "$1")" = "running $2" ]; }
until_ back "$crashed" 1
state "$crashed"

say "$(shards) of 60 shards; docker kill --signal XCPU $aborted"
docker kill --signal XCPU "$aborted" >/dev/null
until_ back "$aborted" 1
state "$aborted"

say "$(shards) of 60 shards; docker kill $taken"
docker kill "$taken" >/dev/null
sleep 5
state "$taken" # Docker restarts nothing that was stopped or killed by its own command
say "docker start $taken"
docker start "$taken" >/dev/null
back "$taken" 0
state "$taken"

wait "$up"
up=
say "the job is verified; the workers:"
state $(workers)
