package certs_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"gatehouse/internal/certs"
	"gatehouse/test/peers"
)

func TestPair(t *testing.T) {
	ca := peers.NewCA(t, "ca")
	cert, key := ca.Issue(t, "auth.example.com")
	other, otherKey := ca.Issue(t, "other.example.com")
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(key)
	legacy := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-128-CBC,00"}, Bytes: block.Bytes})
	modern := pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: block.Bytes})
	broken := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})
	for _, tt := range []struct {
		name      string
		cert, key []byte
		part      certs.Part
		want      string // "" for a good pair
	}{
		{"a pair", cert, key, 0, ""},
		{"a pair with its CA", slices.Concat(cert, ca.PEM), key, 0, ""},
		{"key before the certificate in one file", slices.Concat(key, cert), slices.Concat(cert, key), 0, ""},
		{"CA first", slices.Concat(ca.PEM, cert), key, certs.CertificateFile, "has the server's certificate at place 2: put it first"},
		{"another's key", cert, otherKey, certs.KeyFile, "is not the key of the certificate"},
		{"switched", key, cert, certs.CertificateFile, "is not a certificate but a private key"},
		{"certificate twice", cert, other, certs.KeyFile, "is not a private key but a certificate"},
		{"encrypted key", cert, modern, certs.KeyFile, "is encrypted: take the passphrase off with openssl pkey"},
		{"encrypted key, the old way", cert, legacy, certs.KeyFile, "is encrypted: take the passphrase off with openssl pkey"},
		{"weak RSA", ca.Sign(t, peers.Template("auth.example.com"), weak.Public()), peers.KeyPEM(t, weak), certs.CertificateFile, "has an RSA key of 1024 bits: want at least 2048"},
		{"empty certificate", nil, key, certs.CertificateFile, "is not a certificate: want a PEM file"},
		{"empty key", cert, nil, certs.KeyFile, "is not a private key: want a PEM file"},
		{"broken certificate", slices.Concat(cert, broken), key, certs.CertificateFile, "its block 2 cannot be read"},
		{"broken key", cert, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}), certs.KeyFile, "is not a private key"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pair, err := certs.Pair(tt.cert, tt.key)
			if tt.want == "" {
				if err != nil || pair.Leaf == nil || pair.Leaf.Subject.CommonName != "auth.example.com" {
					t.Errorf("got %v, want the pair with its leaf", err)
				}
				return
			}
			p, ok := errors.AsType[*certs.Problem](err)
			if !ok || p.Part != tt.part || !strings.Contains(p.Text, tt.want) {
				t.Errorf("got %v, want %q in part %d", err, tt.want, tt.part)
			}
		})
	}
}

func TestWarnings(t *testing.T) {
	ca, stranger := peers.NewCA(t, "ca"), peers.NewCA(t, "stranger")
	key := peers.NewKey(t)
	now := time.Now()
	with := func(change func(*x509.Certificate), more ...[]byte) []byte {
		template := peers.Template("auth.example.com")
		change(template)
		return slices.Concat(ca.Sign(t, template, key.Public()), slices.Concat(more...))
	}
	same := func(*x509.Certificate) {}
	for _, tt := range []struct {
		name string
		cert []byte
		host string
		want string
	}{
		{"good", with(same), "auth.example.com", ""},
		{"good with its CA", with(same, ca.PEM), "auth.example.com", ""},
		{"host not known", with(same), "", ""},
		{"another host", with(same), "www.example.com", `is not for www.example.com but for ["auth.example.com"]`},
		{"a common name is no name", with(func(c *x509.Certificate) { c.DNSNames = nil }), "auth.example.com", "is not for auth.example.com but for []"},
		{"expired", with(func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) }), "auth.example.com", "expired on "},
		{"not yet valid", with(func(c *x509.Certificate) { c.NotBefore = now.Add(time.Minute) }), "auth.example.com", "is not valid before "},
		{"for clients", with(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), "auth.example.com", "is not for servers"},
		{"another CA in the chain", with(same, stranger.PEM), "auth.example.com", "place 2 that did not sign the one before it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pair, err := certs.Pair(tt.cert, peers.KeyPEM(t, key))
			if err != nil {
				t.Fatal(err)
			}
			got := certs.Warnings(pair, tt.host, now)
			if tt.want == "" && len(got) > 0 || tt.want != "" && (len(got) != 1 || !strings.Contains(got[0], tt.want)) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestClientCAs(t *testing.T) {
	now := time.Now()
	ca, old := peers.NewCA(t, "ca"), peers.NewCA(t, "old")
	expired := peers.Template("expired")
	expired.IsCA, expired.BasicConstraintsValid, expired.NotAfter = true, true, now.Add(-time.Minute)
	expiredPEM := old.Sign(t, expired, peers.NewKey(t).Public())
	leaf, key := ca.Issue(t, "client")
	broken := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})
	for _, tt := range []struct {
		name     string
		data     []byte
		n        int
		err      string
		warnings []string
	}{
		{"one", ca.PEM, 1, "", nil},
		{"two", slices.Concat(ca.PEM, old.PEM), 2, "", nil},
		{"one and text", slices.Concat([]byte("the CA:\n"), ca.PEM), 1, "", nil},
		{"one has expired", slices.Concat(expiredPEM, ca.PEM), 2, "", []string{"place 1 that expired on "}},
		{"all have expired", expiredPEM, 0, "holds no certificate that could be used", []string{"place 1 that expired on "}},
		{"a client's own", leaf, 1, "", []string{"place 1 that is not that of a CA"}},
		{"one is broken", slices.Concat(broken, ca.PEM), 1, "", []string{"place 1 that cannot be read"}},
		{"all are broken", broken, 0, "holds no certificate that could be used", []string{"place 1 that cannot be read"}},
		{"a key", key, 0, "holds no certificate: want", []string{"holds a private key"}},
		{"empty", nil, 0, "holds no certificate: want", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			all, warnings, err := certs.ClientCAs(tt.data, now)
			if len(all) != tt.n || tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("got %d CAs and %v, want %d and %q", len(all), err, tt.n, tt.err)
			}
			if len(warnings) != len(tt.warnings) {
				t.Fatalf("got %q, want %q", warnings, tt.warnings)
			}
			for i, w := range tt.warnings {
				if !strings.Contains(warnings[i], w) {
					t.Errorf("got %q, want %q", warnings[i], w)
				}
			}
		})
	}
}

const spiffe = "spiffe://cluster.local/ns/istio-system/sa/istio-ingressgateway"

func TestNames(t *testing.T) {
	for _, tt := range []struct {
		name    string
		allowed []string
		has     []string // DNS names and URIs of the certificate; the first is its common name too
		want    bool
	}{
		{"exact", []string{"gateway.example.com"}, []string{"x", "gateway.example.com"}, true},
		{"in another case", []string{"gateway.example.com"}, []string{"x", "Gateway.Example.com"}, true},
		{"below", []string{"gateway.example.com"}, []string{"x.gateway.example.com"}, false},
		{"beginning alike", []string{"gateway.example.com"}, []string{"gateway.example.com.evil.example"}, false},
		{"ending alike", []string{"gateway.example.com"}, []string{"evilgateway.example.com"}, false},
		{"with a port", []string{"gateway.example.com"}, []string{"gateway.example.com:80"}, false},
		{"with a dot at the end", []string{"gateway.example.com"}, []string{"gateway.example.com."}, false},
		{"wildcard", []string{"*.example.com"}, []string{"gateway.example.com"}, true},
		{"wildcard, two labels", []string{"*.example.com"}, []string{"a.gateway.example.com"}, true},
		{"wildcard is not the domain itself", []string{"*.example.com"}, []string{"example.com"}, false},
		{"wildcard is whole labels", []string{"*.example.com"}, []string{"evilexample.com"}, false},
		{"wildcard of the certificate", []string{"*.example.com"}, []string{"*.example.com"}, false},
		{"wildcard of the certificate for an exact name", []string{"gateway.example.com"}, []string{"*.example.com"}, false},
		{"SPIFFE", []string{spiffe}, []string{"x", spiffe}, true},
		{"SPIFFE, one of two", []string{"gateway.example.com", spiffe}, []string{"x", spiffe}, true},
		{"SPIFFE, beginning alike", []string{spiffe}, []string{"x", spiffe + "2"}, false},
		{"SPIFFE, path below", []string{spiffe}, []string{"x", spiffe + "/x"}, false},
		{"SPIFFE, another case", []string{spiffe}, []string{"x", strings.ToUpper(spiffe)}, false},
		{"SPIFFE, another domain", []string{spiffe}, []string{"x", strings.Replace(spiffe, "cluster", "evil", 1)}, false},
		{"SPIFFE, escaped", []string{spiffe}, []string{"x", strings.Replace(spiffe, "/sa/", "%2fsa%2f", 1)}, false},
		{"none listed", nil, []string{"anything"}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n, err := certs.NewNames(tt.allowed)
			if err != nil {
				t.Fatal(err)
			}
			c := peers.Template(tt.has...)
			if len(tt.has) > 1 {
				c.DNSNames = c.DNSNames[1:] // the first is the common name alone
			}
			if got := n.Match(c); got != tt.want {
				t.Errorf("got %t for %q %q, want %t", got, c.DNSNames, c.URIs, tt.want)
			}
		})
	}
	common := peers.Template("gateway.example.com")
	common.DNSNames = nil
	if n, err := certs.NewNames([]string{"gateway.example.com"}); err != nil || n.Match(common) {
		t.Errorf("a common name was taken for a name (%v)", err)
	}
	if (certs.Names{}).Match(peers.Template("gateway.example.com")) {
		t.Error("the zero Names let a certificate in")
	}
	for _, bad := range []string{"", "*", "*.", "*.com", "a.*.com", "x*.example.com", "A.example.com", "a.example.com.", "a.example.com:80", "[::1]", "a b", "spiffe:", "spiffe://", "spiffe://a/*", "spiffe://a/b?c", "spiffe://a/b#c", "spiffe://u@a/b", "://a"} {
		if _, err := certs.NewNames([]string{"good.example.com", bad}); err == nil {
			t.Errorf("got no mistake for the name %q", bad)
		}
	}
}

// A Material has a private key, which must not get into a log by any way of printing it.
func TestMaterialHides(t *testing.T) {
	pair := peers.NewCA(t, "ca").Pair(t, "a.example.com")
	m := certs.Material{Certificate: pair}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%v %+v %#v %s %d %x %v %+v", m, m, m, m, m, m, &m, struct{ M *certs.Material }{&m})
	encoded, err := json.Marshal(struct{ M certs.Material }{m})
	if err != nil {
		t.Fatal(err)
	}
	b.Write(encoded)
	if n := strings.Count(b.String(), "[redacted]"); n != 9 {
		t.Errorf("got %d times [redacted] in %s, want 9", n, b.String())
	}
	if m.String() != m.GoString() || m.LogValue().String() != m.String() {
		t.Error("a form of a Material shows more than the others")
	}
}
