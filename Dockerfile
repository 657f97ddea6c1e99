# docker build -t piat_jax .                          for a CPU
# docker build -t piat_jax --build-arg EXTRA=cuda12 . for an NVIDIA GPU; run it with --gpus=all
FROM python:3.12-slim
ARG EXTRA=data
WORKDIR /piat_jax
COPY . .
# What was tested is in requirements.txt; an image takes what fits together today.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[data,logging,${EXTRA}]" \
    && useradd --create-home --uid 1000 piat
USER 1000
WORKDIR /home/piat
ENTRYPOINT ["python", "-m", "piat_jax"]
