# syntax=docker/dockerfile:1
# Two images: `api` (no torch, about 300 MB) and `worker` (torch as well).
#   docker build --target api -t stillhouse-api .
#   docker build --target worker -t stillhouse-worker .                            CPU build of torch
#   docker build --target worker --build-arg TORCH_BUILD=cuda -t stillhouse-worker:cuda .

FROM python:3.11.14-slim-bookworm AS base
ENV PATH=/opt/stillhouse/bin:$PATH PYTHONUNBUFFERED=1
# The folder belongs to the account, and so does a volume that is first mounted there.
RUN useradd --uid 10001 --create-home --home-dir /var/lib/stillhouse stillhouse
WORKDIR /var/lib/stillhouse
ENV STILLHOUSE_DATA_DIR=/var/lib/stillhouse

FROM base AS build
WORKDIR /src
RUN python -m venv /opt/stillhouse
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=/src/requirements/constraints.txt
COPY requirements requirements

FROM build AS build-api
COPY pyproject.toml README.md ./
COPY app app
COPY stillhouse stillhouse
COPY worker worker
COPY migrations migrations
RUN --mount=type=cache,target=/root/.cache/pip pip install .

FROM build AS build-worker
ARG TORCH=2.13.0
ARG TORCH_BUILD=cpu
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
# Before the sources are copied: a change of ours does not fetch torch again.
RUN --mount=type=cache,target=/root/.cache/pip \
    if [ "$TORCH_BUILD" = cpu ]; then pip install --extra-index-url "$TORCH_CPU_INDEX" "torch==$TORCH+cpu"; \
    else pip install "torch==$TORCH"; fi
COPY pyproject.toml README.md ./
COPY app app
COPY stillhouse stillhouse
COPY worker worker
COPY migrations migrations
RUN --mount=type=cache,target=/root/.cache/pip \
    if [ "$TORCH_BUILD" = cpu ]; then pip install '.[worker]'; else pip install '.[worker,gpu]'; fi

FROM base AS api
COPY --from=build-api /opt/stillhouse /opt/stillhouse
USER stillhouse
EXPOSE 8420
# Whether the process lives: it is not mended by a restart when its database is away, which /readyz tells.
HEALTHCHECK --interval=10s --timeout=10s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8420/livez', timeout=8)"]
CMD ["stillhouse", "serve"]

FROM base AS worker
COPY --from=build-worker /opt/stillhouse /opt/stillhouse
USER stillhouse
ENV STILLHOUSE_WORKER_TICK_FILE=/tmp/stillhouse-worker-tick
# Celery can lose its broker and stay alive, consuming nothing: only the tick says that it works.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, sys, time; sys.exit(time.time() - os.stat(os.environ['STILLHOUSE_WORKER_TICK_FILE']).st_mtime > 60)"]
CMD ["celery", "-A", "worker.supervisor.celery_app", "worker", "--pool", "prefork", "--concurrency", "1", "-Q", "any,cpu"]
