package istio

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestIstio is one cluster, to which every way of installing comes and from which it goes again.
func TestIstio(t *testing.T) {
	start := time.Now()
	c := newCluster(t)
	t.Logf("the control plane is up after %s", time.Since(start).Round(100*time.Millisecond))
	t.Run("refused manifests", c.refusedManifests)
	t.Run("every manifest is accepted", c.everyManifest)
	t.Run("extension provider", c.extensionProvider)
	t.Run("EnvoyFilter", c.envoyFilter)
	t.Run("Gateway API", c.gatewayAPI)
	t.Run("Helm", c.helm)
	t.Run("two replicas on the Kubernetes API", c.onKubernetes)
	t.Run("two replicas on PostgreSQL", c.onPostgres)
	t.Run("attacks", c.attacks)
	t.Run("no NACK", c.noNACK)
}

// noNACK: stock Envoy has taken everything that istiod made of the manifests.
func (c *cluster) noNACK(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(c.dir, "pilot-discovery.log"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, "ACK ERROR") {
			t.Error(line)
		}
	}
}
