// Package istio installs the shipped manifests on a real API server, by the documents' own commands, and signs in through a
// real Istio gateway: etcd, kube-apiserver and istiod with its validation; pilot-agent with stock Envoy as the gateway, by
// mutual TLS with istiod. There is no kubelet and there are no controllers: node_test.go does what they would for the one
// Deployment that is of interest.
//
// What this cannot show: Istio's own Envoy extensions (telemetry, peer metadata, ALPN), which stock Envoy has not; sidecars
// and ambient mode; kube-proxy and network policies.
package istio

import (
	"os"
	"testing"

	"gatehouse/test/cluster/netns"
)

func TestMain(m *testing.M) { os.Exit(netns.Main(m)) }
