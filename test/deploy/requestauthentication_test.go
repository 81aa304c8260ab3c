package deploy

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

// TestRequestAuthentication pins the file with which Istio verifies the token for apps: what it says is what the overlay, its configuration and
// docs/apps.md say. That istiod reaches the keys, package render says.
func TestRequestAuthentication(t *testing.T) {
	list := documents(t, repo(t, "deploy", "overlays", "istio", "request-authentication.yaml"))
	if len(list) != 2 {
		t.Fatalf("got %d objects, want 2", len(list))
	}
	config := shippedConfig(t)
	issuer := config.text("issuer")
	host, _, _ := strings.Cut(strings.TrimPrefix(issuer, "https://"), "/")
	asks, gateway := find(t, list, "RequestAuthentication"), find(t, list, "AuthorizationPolicy")
	check := find(t, overlay(t), "AuthorizationPolicy")
	for _, tc := range []struct {
		rule      string
		got, want any
	}{
		{"one issuer, ours, by the header that the check sets, which the app gets too, whatever the audience", asks.at("spec.jwtRules"), value(t, `
			- issuer: `+issuer+`
			  jwksUri: http://`+service+`:5556/dex/keys
			  fromHeaders: [{name: Authorization, prefix: "Bearer "}]
			  forwardOriginalToken: true`)},
		{"apps by a token of the audience, the issuer by anyone", gateway.at("spec.rules"), value(t, `
			- to: [{operation: {hosts: [`+host+`, "`+host+`:*"]}}]
			- from: [{source: {requestPrincipals: ["`+issuer+`/*"]}}]
			  when: [{key: request.auth.audiences, values: [kubeflow-apps]}]`)},
		{"all else is refused", gateway.at("spec.action"), "ALLOW"},
		{"at the gateway that asks us", asks.at("spec.selector"), check.at("spec.selector")},
		{"and the policy too", gateway.at("spec.selector"), check.at("spec.selector")},
	} {
		if !reflect.DeepEqual(tc.got, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.rule, tc.got, tc.want)
		}
	}
	for _, o := range list {
		if o.text("metadata.namespace") != namespace || slices.ContainsFunc(overlay(t), func(other object) bool { return name(other) == name(o) }) {
			t.Errorf("%s: want it in %s, and none of the overlay", name(o), namespace)
		}
	}
	apps := string(read(t, repo(t, "docs", "apps.md")))
	if !strings.Contains(apps, "token: {header: Authorization, audience: kubeflow-apps,") || !strings.Contains(apps, "kubectl apply -f deploy/overlays/istio/networkpolicy-istiod.yaml -f deploy/overlays/istio/request-authentication.yaml\n") {
		t.Error("docs/apps.md has another header or audience, or does not apply the files")
	}
}
