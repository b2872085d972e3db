# The worker for NVIDIA GPUs: TensorRT and cuda-bindings, both of wheels. The driver is the host's: NVIDIA's Container
# Toolkit puts its library in.
#
# The newest TensorRT wants CUDA 13, which wants driver 580 or later. For CUDA 12, set
# TENSORRT='tensorrt<10.13 cuda-bindings<13' for docker compose.

FROM python:3.11-slim AS worker
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore HOME=/tmp NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN useradd --uid 1000 --create-home embedmill && install -d -o embedmill -g embedmill /engines /output
WORKDIR /app
COPY pyproject.toml ./
ARG PIP_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_TRUSTED_HOST
ARG TENSORRT=tensorrt
# onnxruntime too: rows whose FP16 vector is not finite are computed again in FP32. TENSORRT may name several packages.
RUN touch README.md && mkdir contract engine_build producer verify worker \
    && pip install '.[cpu,gpu]' $TENSORRT && rm "$(command -v embedmill)"
COPY contract contract
COPY engine_build engine_build
COPY producer producer
COPY worker worker
USER embedmill
STOPSIGNAL SIGTERM
CMD ["celery", "-A", "worker", "worker"]
