#!/bin/bash
# Builds what a test cluster consists of, and prints the folder with it:
#
#   test/cluster/install.sh istio         etcd, kube-apiserver, kubectl, helm, istiod, pilot-agent: some 10 minutes of two cores
#   test/cluster/install.sh eg            Envoy Gateway: some 5 minutes
#
# The folder (400 MB and 190 MB) is in the user's cache, $XDG_CACHE_HOME or ~/.cache, and named by what is built, so that other working
# trees find it there; folders of other names are of earlier versions, and may be removed. Needs Go and Debian's essential packages only.
set -euo pipefail
set_=${1:-}
case $set_ in
istio | eg) ;;
*) echo "usage: $0 istio | eg" >&2; exit 2 ;;
esac
cd "$(dirname "$0")/tools-$set_"

module() { go mod download -json "$1" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p'; } # folder of its sources
version() { go list -m -f '{{.Version}}' "$1"; }

build() { # name package [ldflags]
	echo "install: building $1" >&2
	go build -ldflags "-s -w ${3:-}" -o "$bin/$1" "$2" >&2
}

istio() {
	local v=k8s.io/component-base/version kubernetes minor
	kubernetes=$(version k8s.io/kubernetes)
	minor=${kubernetes#v*.}
	kubernetes="-X $v.gitVersion=$kubernetes -X $v.gitMajor=1 -X $v.gitMinor=${minor%%.*}"
	build etcd go.etcd.io/etcd/server/v3
	build kube-apiserver k8s.io/kubernetes/cmd/kube-apiserver "$kubernetes"
	build kubectl k8s.io/kubernetes/cmd/kubectl "$kubernetes"
	build helm helm.sh/helm/v3/cmd/helm
	build pilot-discovery istio.io/istio/pilot/cmd/pilot-discovery "-X istio.io/istio/pkg/version.buildVersion=1.31.0"
	build pilot-agent istio.io/istio/pilot/cmd/pilot-agent "-X istio.io/istio/pkg/version.buildVersion=1.31.0"
	# Not cp: the module cache is read-only, and so would be the copies, for whoever tries again after an interruption.
	install -m 0644 "$(module istio.io/istio)/manifests/charts/base/files/crd-all.gen.yaml" "$bin/istio-crds.yaml"
	install -m 0644 "$(module istio.io/istio)/tools/packaging/common/envoy_bootstrap.json" "$bin/"
	for f in "$(module sigs.k8s.io/gateway-api)"/config/crd/standard/gateway.networking.k8s.io_*.yaml; do echo ---; cat "$f"; done >"$bin/gateway-api-crds.yaml"
	# Envoy Gateway's resources are in templates that say no more than "if enabled".
	(cd ../tools-eg && cat "$(module github.com/envoyproxy/gateway)"/charts/gateway-crds-helm/templates/generated/*.yaml) |
		sed '/^{{-/d' >"$bin/envoy-gateway-crds.yaml"
}

eg() { build envoy-gateway github.com/envoyproxy/gateway/cmd/envoy-gateway; }

key=$({ cat go.sum ../install.sh; go env GOVERSION GOARCH; } | sha256sum | cut -c1-16)
cache=${XDG_CACHE_HOME:-${HOME:?or XDG_CACHE_HOME must name a folder for what is built}/.cache}/gatehouse
bin=$cache/$set_-$key
if [ ! -e "$bin/done" ]; then
	mkdir -p "$bin" || { echo "install: XDG_CACHE_HOME=FOLDER names another place" >&2; exit 1; }
	exec 9>"$cache/lock"
	flock -n 9 || { echo "install: waiting for another build" >&2; flock 9; }
	if [ ! -e "$bin/done" ]; then
		export CGO_ENABLED=0 GOFLAGS="${GOFLAGS:-} -trimpath -buildvcs=false"
		"$set_"
		touch "$bin/done"
	fi
fi
echo "$bin"
