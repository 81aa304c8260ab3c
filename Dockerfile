# docker build -t gatehouse .
# docker buildx build --platform linux/amd64,linux/arm64 -t gatehouse .
#
# The compiler runs on the machine that builds, whatever it builds for.
FROM --platform=$BUILDPLATFORM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
# With .git, from which the binary takes its version.
COPY . .
# Set by the builder, one run for each platform.
ARG TARGETOS TARGETARCH
# As `make release` does it: the same Go and commit give the same bytes.
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -ldflags "-s -w" -o /out/gatehouse ./cmd/gatehouse
RUN mkdir -m 0700 /out/data /out/tmp

# Nothing but the binary: no shell, no package manager, no libc.
FROM scratch
LABEL org.opencontainers.image.title="Gatehouse" \
      org.opencontainers.image.description="Authorizer and OpenID Connect provider for Envoy and Istio gateways" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/gatehouse /gatehouse
COPY --from=build --chown=65532:65532 /out/data /var/lib/gatehouse
COPY --from=build --chown=65532:65532 /out/tmp /tmp
# A number, since Kubernetes' runAsNonRoot cannot check a name.
USER 65532:65532
# Issuer, ext_authz over gRPC, telemetry. The admin listener stays on the loopback address.
EXPOSE 5556 9001 5558
ENTRYPOINT ["/gatehouse"]
CMD ["serve", "--config", "/etc/gatehouse/gatehouse.yaml"]
