# One image for every node: `docker run maskcast worker`, `docker run maskcast camera --source ...`.

FROM python:3.11-slim-bookworm AS build
# `--build-arg EXTRAS=` leaves openvino out where it has no wheel or no use; onnxruntime then does the work.
ARG EXTRAS=openvino
RUN python -m venv /opt/maskcast
WORKDIR /src
# The libraries change less often than the code, so they are a layer of their own.
COPY pyproject.toml .
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = [x for x in '$EXTRAS'.split(',') if x]; \
print(*p['dependencies'], *(r for x in extras for r in p['optional-dependencies'][x]), sep='\n')" > requirements.txt \
 && /opt/maskcast/bin/pip install --no-cache-dir --disable-pip-version-check --quiet --retries 5 -r requirements.txt
COPY . .
RUN /opt/maskcast/bin/pip install --no-cache-dir --disable-pip-version-check --quiet --retries 5 --no-deps .

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="maskcast" \
      org.opencontainers.image.description="Cameras send learned latents instead of video; workers turn them into segmentation masks" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/maskcast /opt/maskcast
# numba keeps its machine code in the cache folder: filled here, so that a node starts in a second, and
# writable, because a host with another processor compiles its own.
# Every node answers /healthz, /readyz and /metrics on 8080, the viewer with its page.
ENV PATH=/opt/maskcast/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NUMBA_CACHE_DIR=/var/cache/numba \
    MASKCAST_HEALTH__HOST=0.0.0.0 \
    MASKCAST_HEALTH__PORT=8080 \
    MASKCAST_VIEWER__HOST=0.0.0.0
RUN useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin maskcast \
 && install -d -o maskcast -g maskcast /var/cache/numba
USER 10001:10001
WORKDIR /opt/maskcast
RUN data=$(python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/maskcast_data \
 && maskcast encode --threshold 96 --noise-reduction --input "$data/samples/street.mp4" --output /tmp/packets \
 && maskcast decode --input /tmp/packets --output /tmp/masks \
 && rm -r /tmp/packets /tmp/masks
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"]
ENTRYPOINT ["maskcast"]
CMD ["--help"]
