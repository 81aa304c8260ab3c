package eg

import (
	"net/http"
	"strings"
	"testing"
)

// TestToken: Envoy Gateway's JWT filter runs after the check, so that it sees the app's token that Gatehouse has set, and
// takes no other. Its policy is merged with the Gateway's: one that replaced it would take the check away.
func TestToken(t *testing.T) {
	const headers = "    headers: {kubeflow-userid: email, kubeflow-groups: groups}\n"
	audience := "kubeflow-apps"
	w := start(t, layout{
		config: func(text string) string {
			if !strings.Contains(text, headers) {
				t.Fatalf("the file has no %s", headers)
			}
			return strings.Replace(text, headers, headers+"    token: {header: Authorization, audience: "+audience+", ttl: 5m}\n", 1)
		},
		more: `---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: Backend
metadata: {name: issuer, namespace: apps}
spec:
  endpoints: [{ip: {address: ` + pod + `, port: 5556}}]
---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: SecurityPolicy
metadata: {name: token, namespace: apps}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: app}]
  mergeType: StrategicMerge
  jwt:
    providers:
    - name: gatehouse
      issuer: https://auth.corp.test/dex
      audiences: [` + audience + `]
      remoteJWKS:
        uri: https://auth.corp.test/dex/keys
        backendRefs: [{group: gateway.envoyproxy.io, kind: Backend, name: issuer, port: 5556}]
      claimToHeaders: [{claim: sub, header: x-verified-subject}]
`,
	})
	b := w.signedIn(t)
	const forged = "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJyb290In0."
	a, err := ask(t.Context(), b.Client, appURL+"/headers", "X-Verified-Subject: root")
	if h := a.seen(); err != nil || h["x-verified-subject"] == "" || h["x-verified-subject"] == "root" || !strings.HasPrefix(h["authorization"], "Bearer ") {
		t.Errorf("got %s, %v, want the token's subject", a, err)
	}
	// Nobody has a token, so the filter refuses what Gatehouse lets pass; made up ones are taken by neither.
	for _, lines := range [][]string{nil, {"Authorization: " + forged}} {
		if a := w.mustAsk(t, appURL+"/healthz", lines...); a.status != http.StatusUnauthorized {
			t.Errorf("%v: got %s, want 401", lines, a)
		}
	}
}
