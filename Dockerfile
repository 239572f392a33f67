# Lodestar in one image, for every role. Targets: cpu, cuda.
#   docker build --target cpu -t lodestar:0.1.0 .
#   docker build --target cuda -t lodestar-cuda:0.1.0 .

# Debian 12, whose Python is 3.11; any Debian or Ubuntu base with Python 3.11 or 3.12 does.
ARG BASE=docker.io/library/debian:bookworm-slim@sha256:4724b8cc51e33e398f0e2e15e18d5ec2851ff0c2280647e1310bc1642182655d

FROM ${BASE} AS python
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    # PyTorch asks for the name of its user.
    && echo 'lodestar:x:10001:10001::/tmp:/usr/sbin/nologin' >> /etc/passwd \
    && echo 'lodestar:x:10001:' >> /etc/group
# All that is ever written goes to /tmp, so that the root file system can be read-only.
ENV PATH=/opt/lodestar/bin:$PATH \
    HOME=/tmp \
    HF_HOME=/tmp/huggingface \
    TORCHINDUCTOR_CACHE_DIR=/tmp/inductor \
    TRITON_CACHE_DIR=/tmp/triton \
    XDG_CACHE_HOME=/tmp/cache \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

FROM python AS builder
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/lodestar
WORKDIR /build
ENV PIP_NO_CACHE_DIR=1

# Dependencies change seldom: a layer of their own, before any code.
FROM builder AS requirements
COPY pyproject.toml constraints.txt ./
RUN python3 -c "import tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*project['dependencies'], *project['optional-dependencies']['hub'], \
*project['optional-dependencies']['openai'], sep='\n')" > requirements.txt

FROM requirements AS dependencies-cpu
# Where PyTorch's builds without CUDA are; empty where pip finds them by itself.
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install ${TORCH_CPU_INDEX:+--extra-index-url ${TORCH_CPU_INDEX}} -c constraints.txt -r requirements.txt

FROM requirements AS dependencies-cuda
# PyTorch's CUDA builds name the Triton they need.
RUN grep -v '^triton==' constraints.txt > constraints-cuda.txt \
    && pip install -c constraints-cuda.txt -r requirements.txt

FROM builder AS code
COPY pyproject.toml README.md LICENSE ./
COPY kernels kernels
COPY lodestar lodestar
COPY services services
RUN pip install --no-deps --root /code --prefix /opt/lodestar .

FROM python AS cpu
COPY --from=dependencies-cpu /opt/lodestar /opt/lodestar
COPY --from=code /code/opt/lodestar /opt/lodestar
USER 10001:10001
EXPOSE 50051 50052 50053 50054 9090
ENTRYPOINT ["lodestar"]

FROM python AS cuda
# Triton compiles a small C launcher for each kernel.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev \
    && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=dependencies-cuda /opt/lodestar /opt/lodestar
COPY --from=code /code/opt/lodestar /opt/lodestar
USER 10001:10001
EXPOSE 50051 50052 50053 50054 9090
ENTRYPOINT ["lodestar"]
