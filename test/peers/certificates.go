package peers

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"
)

// A CA is a certificate authority in memory.
type CA struct {
	Certificate *x509.Certificate
	PEM         []byte // the certificate

	key crypto.Signer
}

// NewCA returns a CA that is good for a day.
func NewCA(t testing.TB, name string) *CA {
	t.Helper()
	ca := &CA{key: NewKey(t)}
	template := Template(name)
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	template.ExtKeyUsage = nil
	ca.Certificate = template
	ca.PEM = ca.Sign(t, template, ca.key.Public())
	block, _ := pem.Decode(ca.PEM)
	var err error
	if ca.Certificate, err = x509.ParseCertificate(block.Bytes); err != nil {
		t.Fatal(err)
	}
	return ca
}

// NewKey returns a new private key.
func NewKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Template returns what a certificate says that is good for a day, for servers and clients. Names are DNS names, IP
// addresses and URIs; the first is the common name too.
func Template(names ...string) *x509.Certificate {
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: names[0]},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, name := range names {
		switch ip := net.ParseIP(name); {
		case ip != nil:
			c.IPAddresses = append(c.IPAddresses, ip)
		case strings.Contains(name, "://"):
			if u, err := url.Parse(name); err == nil {
				c.URIs = append(c.URIs, u)
			}
		default:
			c.DNSNames = append(c.DNSNames, name)
		}
	}
	return c
}

// Sign returns a certificate as PEM.
func (ca *CA) Sign(t testing.TB, template *x509.Certificate, public crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Certificate, public, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// Issue returns a certificate for the names of Template and its new key, as PEM.
func (ca *CA) Issue(t testing.TB, names ...string) (certificate, key []byte) {
	t.Helper()
	k := NewKey(t)
	return ca.Sign(t, Template(names...), k.Public()), KeyPEM(t, k)
}

// Pair is Issue for a program that has the certificate in memory.
func (ca *CA) Pair(t testing.TB, names ...string) tls.Certificate {
	t.Helper()
	pair, err := tls.X509KeyPair(ca.Issue(t, names...))
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// Pool holds the CA alone.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.Certificate)
	return pool
}

// KeyPEM returns a private key as PKCS #8.
func KeyPEM(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}
