# An image with the command rmtrain, built from a folder of wheels without a network. On a machine with a network, collect them with the image's Python:
#   docker run --rm --volume "$PWD:/src" --workdir /src python:3.12-slim pip wheel --wheel-dir wheels '.[8bit]'
# Then, also without one:
#   docker build --network none --build-arg PACKAGE='rmtrain[8bit]' --tag rmtrain .
#   docker run --rm --gpus all --ipc host --volume "$PWD:/workspace" rmtrain train recipes/mine.yaml
# The mount needs BuildKit, the default since Docker 23.0; it keeps the wheels themselves out of the image.
ARG PYTHON=python:3.12-slim
FROM ${PYTHON}
ARG PACKAGE=rmtrain
RUN --mount=type=bind,source=wheels,target=/wheels \
    pip install --no-cache-dir --no-index --find-links /wheels "${PACKAGE}"
# Files in a mounted folder belong to this user: build with --build-arg UID="$(id -u)" to make them yours.
ARG UID=1000
RUN useradd --create-home --uid "${UID}" rmtrain
USER rmtrain
WORKDIR /workspace
ENTRYPOINT ["rmtrain"]
CMD ["--help"]
