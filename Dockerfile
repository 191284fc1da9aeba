# The serving image: the server, its client and their dependencies; no training code, torch or onnx.
#
#   make image                  the CPU flavour, measured        make image RUNTIME=cuda     onnxruntime on CUDA
#   docker run -v "$PWD/repository:/repository:ro" -p 8000-8002:8000-8002 convoy
#   docker run --network host convoy models --server 127.0.0.1:8001
#
# The base has to offer nothing but Python 3.11 or newer with venv.
ARG BASE=python:3.12-slim-bookworm
ARG RUNTIME=cpu

# pip stays in this stage, in an environment of its own: the one that ships has no installer inside.
FROM ${BASE} AS dependencies
ARG RUNTIME
# Further extras of pyproject.toml, such as "tracing", with spaces between them.
ARG EXTRAS=
# Where pip finds packages, for a network that has its own index. Unset, pip decides.
ARG PIP_INDEX_URL=
ARG PIP_EXTRA_INDEX_URL=
ARG PIP_TRUSTED_HOST=
ARG PIP_CERT=
ARG PIP_DEFAULT_TIMEOUT=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python3 -m venv /build/installer && python3 -m venv --without-pip /opt/convoy
# Only the list of dependencies: a change of code keeps this layer, and does not install them again.
COPY pyproject.toml ./
RUN python3 -c 'import sys, tomllib; \
project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
extras = project["optional-dependencies"]; \
runtime = [one for name in sys.argv[1:] for one in extras[name] if not one.startswith("convoy[")]; \
print(*project["dependencies"], *extras["serve"], *runtime, sep="\n")' ${RUNTIME} ${EXTRAS} > requirements.txt \
 && installer/bin/pip --python /opt/convoy/bin/python install --quiet --no-compile --requirement requirements.txt
# What never runs in a server goes: the packages' own tests, and onnxruntime's tools, which want onnx.
# Compiled by hash, not by time: a layer keeps whole seconds, so that half of the files would look changed and be compiled
# again at every start.
# The code arrives in a folder of its own, so that its layer is a small one.
RUN cd /opt/convoy/lib/python3*/site-packages \
 && find . -type d -name tests -prune -exec rm -rf {} + \
 && rm -rf onnxruntime/datasets onnxruntime/quantization onnxruntime/tools onnxruntime/transformers \
 && /opt/convoy/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash . \
 && echo /opt/convoy/code > convoy.pth

FROM dependencies AS code
COPY README.md ./
COPY service service
COPY convoy convoy
RUN installer/bin/pip --python /opt/convoy/bin/python install --quiet --no-compile --no-deps --target /opt/convoy/code . \
 && /opt/convoy/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/convoy/code
# The promise above, kept by the build: what must be inside can be imported, what must not cannot be found.
RUN /opt/convoy/bin/python -c 'import sys; from importlib.util import find_spec; \
import onnxruntime, convoy.service.cli; \
sys.exit([f"{name} is in the image" for name in ("torch", "onnx", "convoy.models", "pip") if find_spec(name)] or 0)'

FROM ${BASE}
# What speaks HTTP/2, 200 kB. On a base without Debian's packages grpcio does, at several times the CPU time of a call.
RUN if command -v apt-get >/dev/null; then \
      apt-get update -qq \
      && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends libnghttp2-14 >/dev/null \
      && apt-get clean && rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=dependencies /opt/convoy /opt/convoy
COPY --from=code /opt/convoy/code /opt/convoy/code
# Everything is compiled already, and the user below may not write it. onnxruntime would report to its makers what it runs.
# The last two are read by the NVIDIA container runtime, which brings the driver's libraries.
ENV PATH=/opt/convoy/code/bin:/opt/convoy/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    CONVOY_SERVER__HOST=0.0.0.0
# A number, so that an orchestrator can see that it is not root.
USER 10001:10001
WORKDIR /
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["convoy", "health"]
# No VOLUME: a server started without a mount says that the repository is missing, and does not serve an empty one.
ENTRYPOINT ["convoy"]
CMD ["serve", "--repository", "/repository"]
ARG RUNTIME
ARG REVISION
LABEL org.opencontainers.image.title="Convoy" \
      org.opencontainers.image.description="Serves convolutional networks over gRPC, in batches" \
      org.opencontainers.image.revision="${REVISION}" \
      convoy.runtime="${RUNTIME}"
