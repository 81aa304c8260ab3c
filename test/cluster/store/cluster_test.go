package store

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatehouse/provider/store"
	"gatehouse/test/peers"
)

// kubeconfig writes a kubeconfig and returns its path.
func (c *cluster) kubeconfig(t testing.TB, server, namespace, token string) string {
	t.Helper()
	dir := peers.Folder(t)
	must(t, os.WriteFile(filepath.Join(dir, "ca.crt"), c.CA.PEM, 0o600))
	path := filepath.Join(dir, "kubeconfig")
	must(t, os.WriteFile(path, fmt.Appendf(nil, `
apiVersion: v1
kind: Config
current-context: c
clusters: [{name: c, cluster: {server: %q, certificate-authority: ca.crt}}]
users: [{name: u, user: {token: %s}}]
contexts: [{name: c, context: {cluster: c, user: u, namespace: %s}}]
`, server, token, namespace), 0o600))
	return path
}

// namespace reads back the namespace of a config.
func (c *cluster) namespace(t testing.TB, config store.KubernetesConfig) string {
	t.Helper()
	b, err := os.ReadFile(config.KubeConfigFile)
	must(t, err)
	_, after, _ := strings.Cut(string(b), "namespace: ")
	name, _, _ := strings.Cut(after, "}")
	return name
}

// objects counts the objects of a namespace, those of deleted records included.
func (c *cluster) objects(t testing.TB, config store.KubernetesConfig) int {
	t.Helper()
	return strings.Count(c.Kubectl(t, "", "-n", c.namespace(t, config), "get", "records", "-o", "name"), "\n")
}
