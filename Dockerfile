# The gateway on the CPU of a server. The build needs no network: docs/containers.md has the command that fills `wheels`.
ARG BASE=python:3.12-slim

FROM ${BASE} AS build
RUN python3 -m venv /opt/npu-gateway
WORKDIR /src
COPY wheels wheels
COPY requirements-container.lock ./
RUN /opt/npu-gateway/bin/python -m pip install --no-index --find-links=wheels --require-hashes --no-deps \
    --only-binary=:all: --no-compile --disable-pip-version-check -r requirements-container.lock
COPY pyproject.toml config.toml LICENSE NOTICE ./
COPY docs/install.md docs/
COPY gateway gateway
RUN /opt/npu-gateway/bin/python -m pip install --no-index --no-deps --no-build-isolation --no-compile \
    --disable-pip-version-check . \
    && /opt/npu-gateway/bin/python -m pip uninstall --yes pip setuptools \
    && /opt/npu-gateway/bin/python -m compileall -q -j 0 -x '/(faker|openai|pygments|testing|tests?)/' /opt/npu-gateway/lib

FROM ${BASE}
COPY --from=build /opt/npu-gateway /opt/npu-gateway
# It writes to /models, to /data (config.toml, usage, caches) and to /tmp only.
RUN useradd --uid 10001 --user-group --home-dir /data --create-home --shell /usr/sbin/nologin gateway \
    && install --directory --owner 10001 --group 10001 /models
ENV PATH=/opt/npu-gateway/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    XDG_DATA_HOME=/data \
    XDG_CACHE_HOME=/data/cache \
    NPU_GATEWAY_MODELS_DIR=/models \
    NPU_GATEWAY_SERVER_HOST=0.0.0.0 \
    NPU_GATEWAY_SERVER_PORT=8000 \
    NPU_GATEWAY_LOG_FILE=""
WORKDIR /data
VOLUME /data /models
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['NPU_GATEWAY_SERVER_PORT'] + '/healthz', timeout=4)"]
ENTRYPOINT ["python", "-P", "-m", "gateway"]
CMD ["serve"]
