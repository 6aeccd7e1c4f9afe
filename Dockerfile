# Both bases are arguments: a mirror, a digest or another release takes their place without a change here.
ARG RUST_IMAGE=docker.io/library/rust:1.95-bookworm
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12

FROM ${RUNTIME_IMAGE} AS runtime

FROM ${RUST_IMAGE} AS build
WORKDIR /build
# The dependencies are a layer of their own, which only another manifest makes anew. Benches and examples are not in the
# context, and a manifest that names them cannot be read without them.
COPY Cargo.toml Cargo.lock ./
RUN sed -i '/^\[\[\(bench\|example\|test\)\]\]/,/^$/d' Cargo.toml \
    && mkdir src && echo 'fn main() {}' > src/main.rs && touch src/lib.rs \
    && cargo build --release --locked --bin apollonia-ingestor
COPY src src
# A source older than the stub's build would count as built already.
RUN find src -name '*.rs' -exec touch {} + && cargo build --release --locked --bin apollonia-ingestor
# What the last stage takes over as it is: its base has no shell to make it with.
COPY --from=runtime /etc/passwd /etc/group root/etc/
RUN mkdir -p root/usr/local/bin root/data root/state \
    && cp target/release/apollonia-ingestor root/usr/local/bin/ \
    && strip --strip-debug root/usr/local/bin/apollonia-ingestor \
    && echo 'apollonia:x:1001:1001:apollonia:/var/lib/apollonia-ingestor:/sbin/nologin' >> root/etc/passwd \
    && echo 'apollonia:x:1001:' >> root/etc/group

FROM runtime
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="apollonia-ingestor" \
    org.opencontainers.image.description="Turns files landing in a directory into RabbitMQ messages" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
COPY --from=build /build/root/etc/ /etc/
COPY --from=build /build/root/usr/ /usr/
COPY --from=build --chown=1001:1001 /build/root/data /data
COPY --from=build --chown=1001:1001 /build/root/state /var/lib/apollonia-ingestor
# The control socket lives beside the ledger, so that a read-only container needs no other place to write.
ENV DATA_DIRECTORY=/data \
    STATE_DIRECTORY=/var/lib/apollonia-ingestor \
    INGESTOR_CONTROL_SOCKET=/var/lib/apollonia-ingestor/control.sock
VOLUME ["/data", "/var/lib/apollonia-ingestor"]
# By number: Kubernetes cannot see from a name that it is not root.
USER 1001:1001
STOPSIGNAL SIGTERM
# A start may wait a minute for its predecessor's connection to be worked off.
HEALTHCHECK --interval=15s --timeout=5s --start-period=90s --retries=3 CMD ["apollonia-ingestor", "health"]
ENTRYPOINT ["apollonia-ingestor"]
