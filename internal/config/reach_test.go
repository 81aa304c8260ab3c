package config

import (
	"net/url"
	"strings"
	"testing"
)

// TestIssuerThatBrowsersCannotReach: the gateway would send them to an address that only the cluster, the machine or the
// operator knows.
func TestIssuerThatBrowsersCannotReach(t *testing.T) {
	const fix = ": set it to the URL by which browsers come through the gateway, such as https://auth.example.com/dex"
	for _, tc := range []struct{ name, issuer, hosts, want string }{
		{"a Service's name", "https://dex.auth.svc.cluster.local/dex", "app.example.com", "only pods of the cluster can reach dex.auth.svc.cluster.local, and browsers come to app.example.com" + fix},
		{"its port is not told as well", "https://dex.auth.svc:5556/dex", "app.example.com", "only pods of the cluster can reach dex.auth.svc:5556, and browsers come to app.example.com" + fix},
		{"a bare name", "https://dex/dex", `"*.apps.example.com"`, "only the namespace or network that it is a short name of can reach dex, and browsers come to *.apps.example.com" + fix},
		{"this machine", "https://localhost/dex", "app.example.com", "only programs on the same machine can reach localhost, and browsers come to app.example.com" + fix},
		{"its address", "https://127.0.0.1:5556/dex", "http://localhost, https://app.example.com:8443", "only programs on the same machine can reach 127.0.0.1:5556, and browsers come to app.example.com" + fix},
		{"a path is kept", "https://dex.auth.svc/login/dex", "app.example.com", "such as https://auth.example.com/login/dex"},
		{"the port of the listener", "https://auth.example.com:5556/dex", "app.example.com", "names port 5556, where web.http listens: browsers would go past the gateway; leave the port out where the gateway serves the issuer"},
		{"http behind TLS", "http://auth.example.com/dex", "https://app.example.com", "is http, and app.example.com is https: where the gateway speaks TLS for both, write https://auth.example.com/dex"},
		{"a provider only, in the cluster", "https://dex.auth.svc/dex", "", "only pods of the cluster can reach dex.auth.svc, not browsers" + fix},

		{"a name of the internet", "https://auth.example.com/dex", "app.example.com", ""},
		{"the gateway's port", "https://auth.example.com:8443/dex", "app.example.com", ""},
		{"everything on one machine", "http://localhost:8080/dex", "http://localhost:8080", ""},
		{"everything in the cluster", "https://dex.auth.svc/dex", "app.team-a.svc", ""},
		{"a provider only, for a try", "http://127.0.0.1:5556/dex", "", ""},
		{"http for all", "http://auth.example.com/dex", "app.example.com", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := strings.Replace(head, "https://auth.example.com/dex", tc.issuer, 1)
			if tc.hosts != "" {
				file += "gateway:\n  hosts: [" + tc.hosts + "]\n"
			}
			_, warnings := mustParse(t, file)
			var got []string
			for _, w := range warnings {
				if w.Path == "issuer" && !strings.HasPrefix(w.Msg, "is served over http:") {
					got = append(got, w.Msg)
				}
			}
			if all := strings.Join(got, "\n"); len(got) > 1 || (tc.want == "") != (all == "") || !strings.HasSuffix(all, tc.want) {
				t.Errorf("got %q, want %q", all, tc.want)
			}
		})
	}
}

// TestDirectIssuerPort: a process that speaks TLS itself at the port that its URL names is meant to.
func TestDirectIssuerPort(t *testing.T) {
	c := &Config{IssuerURL: &url.URL{Scheme: "https", Host: "auth.example.com:5556", Path: "/dex"}, Gateway: &Gateway{Hosts: []string{"app.example.com"}}}
	for address, want := range map[string]int{"0.0.0.0:5556": 0, "": 1} {
		c.Web = Web{HTTP: "0.0.0.0:5556", HTTPS: address}
		k := &checker{decoder: &decoder{report: newReport("g.yaml")}, c: c, https: true}
		k.reach()
		if _, got := k.sorted(); len(got) != want {
			t.Errorf("web.https %q: got %d warnings, want %d: %v", address, len(got), want, got)
		}
	}
}
