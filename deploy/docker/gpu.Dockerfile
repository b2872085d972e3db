# The worker for NVIDIA GPUs: TensorRT, and pycuda, which has no wheels and is compiled against the CUDA headers.
#
# The newest TensorRT wants CUDA 13, which wants driver 580 or later. For CUDA 12, set CUDA=12.9.1 and
# TENSORRT='tensorrt<10.13' for docker compose.
ARG CUDA=13.0.1

FROM nvidia/cuda:${CUDA}-devel-ubuntu24.04 AS compiled
RUN apt-get update && apt-get install --yes --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /venv
ENV PATH=/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
COPY pyproject.toml ./
ARG PIP_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_TRUSTED_HOST
ARG TENSORRT=tensorrt
# onnxruntime too: rows whose FP16 vector is not finite are computed again in FP32.
RUN touch README.md && mkdir contract engine_build producer verify worker \
    && pip install '.[cpu,gpu]' "$TENSORRT" && rm /venv/bin/embedmill

FROM nvidia/cuda:${CUDA}-runtime-ubuntu24.04 AS worker
RUN apt-get update && apt-get install --yes --no-install-recommends python3 && rm -rf /var/lib/apt/lists/* \
    && (userdel --remove ubuntu || true) \
    && useradd --uid 1000 --create-home embedmill && install -d -o embedmill -g embedmill /engines /output
COPY --from=compiled /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
WORKDIR /app
COPY contract contract
COPY engine_build engine_build
COPY producer producer
COPY worker worker
USER embedmill
STOPSIGNAL SIGTERM
CMD ["celery", "-A", "worker", "worker"]
