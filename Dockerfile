# The image of all processes of a store: docker build -t ambry:0.1.0 .   What it runs is the argument: ambry serve, ...
FROM python:3.11.11-slim-bookworm

WORKDIR /opt/ambry
COPY requirements.lock ./
RUN pip install --no-cache-dir --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY ambry ./ambry
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

# A volume that is mounted here belongs to the same user.
RUN useradd --system --uid 1174 ambry && mkdir -p /var/lib/ambry && chown ambry /var/lib/ambry
USER ambry
WORKDIR /var/lib/ambry
ENTRYPOINT ["ambry"]
