// Package certs reads what a TLS listener needs from PEM files, and says what is wrong with them: certificate and key of
// the server, and the CA and the names of the clients that it lets in.
package certs

import (
	"crypto"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"
)

// A Material is all that the handshakes of one listener need. It prints as [redacted], since it holds a private key.
type Material struct {
	Certificate tls.Certificate     // with its Leaf
	ClientCAs   []*x509.Certificate // none: clients are asked for no certificate
	ClientNames Names               // of the clients' certificates
	MinVersion  uint16              // tls.VersionTLS12 or above
	MaxVersion  uint16              // 0: the highest that Go has
}

const redacted = "[redacted]"

// String returns [redacted].
func (Material) String() string { return redacted }

// GoString returns [redacted].
func (Material) GoString() string { return redacted }

// Format prints [redacted] whatever the verb.
func (Material) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// MarshalJSON returns "[redacted]".
func (Material) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// MarshalYAML returns [redacted].
func (Material) MarshalYAML() (any, error) { return redacted, nil }

// LogValue returns [redacted].
func (Material) LogValue() slog.Value { return slog.StringValue(redacted) }

// Config returns the configuration of a server that offers protocols by ALPN, the one it likes best first.
//
// Where clients need a certificate no session tickets are given: each connection proves itself anew, by the CA and the
// names of today. Gateways keep their connections, so that nothing is lost by it.
func (m *Material) Config(protocols ...string) *tls.Config {
	c := &tls.Config{
		Certificates: []tls.Certificate{m.Certificate}, NextProtos: protocols,
		MinVersion: max(m.MinVersion, tls.VersionTLS12), MaxVersion: m.MaxVersion,
	}
	if len(m.ClientCAs) == 0 {
		return c
	}
	c.ClientAuth, c.ClientCAs, c.SessionTicketsDisabled = tls.RequireAndVerifyClientCert, x509.NewCertPool(), true
	for _, ca := range m.ClientCAs {
		c.ClientCAs.AddCert(ca)
	}
	c.VerifyConnection = func(s tls.ConnectionState) error {
		if len(s.VerifiedChains) == 0 {
			return errUnverified
		}
		if !m.ClientNames.Match(s.PeerCertificates[0]) {
			return &NameError{Names: SANs(s.PeerCertificates[0])}
		}
		return nil
	}
	return c
}

var errUnverified = errors.New("the client's certificate was not verified")

// A NameError means that a client's certificate is good, and none of its names is allowed.
type NameError struct{ Names []string } // those that it has

// Error says which names the certificate has.
func (e *NameError) Error() string {
	if len(e.Names) == 0 {
		return "the client's certificate has no DNS or URI name (the common name does not count)"
	}
	return fmt.Sprintf("no name of the client's certificate is allowed: it has %q", e.Names)
}

// A Part is the file of a pair that a problem is in.
type Part int

// The files of a pair.
const (
	CertificateFile Part = iota
	KeyFile
)

// A Problem is why a pair cannot be used: a sentence about the file, without its name.
type Problem struct {
	Part Part
	Text string
}

// Error returns the text.
func (p *Problem) Error() string { return p.Text }

func problem(part Part, format string, args ...any) *Problem {
	return &Problem{Part: part, Text: fmt.Sprintf(format, args...)}
}

// MinRSA is the shortest RSA key that is accepted, in bits (NIST SP 800-57: 112 bits of security).
const MinRSA = 2048

// Pair reads a certificate, that of the server first, and its private key. The error is a *Problem.
func Pair(certPEM, keyPEM []byte) (tls.Certificate, error) {
	var none tls.Certificate
	chain, err := certificates(certPEM)
	if err != nil {
		return none, err
	}
	if encrypted(keyPEM) {
		return none, problem(KeyFile, "is encrypted: take the passphrase off with openssl pkey -in FILE -out NEWFILE, and let nobody else read the new file")
	}
	if key, ok := chain[0].PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() < MinRSA {
		return none, problem(CertificateFile, "has an RSA key of %d bits: want at least %d, or ECDSA", key.N.BitLen(), MinRSA)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return none, pairProblem(err, chain, keyPEM)
	}
	return pair, nil
}

// certificates returns those of a file for a pair.
func certificates(data []byte) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	other := ""
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			other = block.Type
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, problem(CertificateFile, "is not a certificate: its block %d cannot be read (%s)", len(chain)+1, strings.TrimPrefix(err.Error(), "x509: "))
		}
		chain = append(chain, c)
	}
	const want = "want a PEM file with CERTIFICATE blocks, that of the server first"
	switch {
	case len(chain) > 0:
		return chain, nil
	case strings.HasSuffix(other, "PRIVATE KEY"):
		return nil, problem(CertificateFile, "is not a certificate but a private key: %s; the two may have been switched", want)
	}
	return nil, problem(CertificateFile, "is not a certificate: %s", want)
}

// encrypted reports keys as of RFC 5958 section 3 and RFC 1421 section 4.6.1.1.
func encrypted(data []byte) bool {
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED") {
			return true
		}
	}
	return false
}

// pairProblem says why tls.X509KeyPair refused a pair whose chain can be read.
func pairProblem(err error, chain []*x509.Certificate, keyPEM []byte) *Problem {
	if signer := privateKey(keyPEM); signer != nil {
		for i, c := range chain[1:] {
			if public, ok := c.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); ok && public.Equal(signer.Public()) {
				return problem(CertificateFile, "has the server's certificate at place %d: put it first, then the one that signed it, and so on", i+2)
			}
		}
		return problem(KeyFile, "is not the key of the certificate: give the two that belong together")
	}
	const want = "want a PEM file with an unencrypted PRIVATE KEY block"
	if block, _ := pem.Decode(keyPEM); block != nil && block.Type == "CERTIFICATE" {
		return problem(KeyFile, "is not a private key but a certificate: %s", want)
	}
	if !strings.Contains(err.Error(), "key") { // not a matter of the key, then
		return problem(CertificateFile, "cannot be used: %s", strings.TrimPrefix(err.Error(), "tls: "))
	}
	return problem(KeyFile, "is not a private key: %s", want)
}

// privateKey returns the first private key of a file, or nil.
func privateKey(data []byte) crypto.Signer {
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if !strings.HasSuffix(block.Type, "PRIVATE KEY") {
			continue
		}
		if key, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
			signer, _ := key.(crypto.Signer)
			return signer
		}
		if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
			return key
		}
		if key, err := x509.ParseECPrivateKey(block.Bytes); err == nil {
			return key
		}
		return nil
	}
	return nil
}

// Warnings says what about a usable pair clients will stumble over, at the time now: each a sentence about the
// certificate's file, without its name. host is the name that clients check; empty: none is known.
func Warnings(pair tls.Certificate, host string, now time.Time) (all []string) {
	leaf := pair.Leaf
	all = validity(leaf, now)
	if host != "" && leaf.VerifyHostname(host) != nil {
		all = append(all, fmt.Sprintf("is not for %s but for %q: clients will refuse it; get one with that name", host, SANs(leaf)))
	}
	if len(leaf.ExtKeyUsage) > 0 && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny) {
		all = append(all, "is not for servers (extended key usage serverAuth): clients will refuse it")
	}
	for i := 1; i < len(pair.Certificate); i++ {
		below, errBelow := x509.ParseCertificate(pair.Certificate[i-1])
		above, errAbove := x509.ParseCertificate(pair.Certificate[i])
		if errBelow != nil || errAbove != nil || string(below.RawIssuer) != string(above.RawSubject) {
			all = append(all, fmt.Sprintf("has a certificate at place %d that did not sign the one before it: some clients will refuse the chain; order it, or remove what does not belong to it", i+1))
			break
		}
	}
	return all
}

func validity(c *x509.Certificate, now time.Time) []string {
	switch {
	case now.After(c.NotAfter):
		return []string{"expired on " + date(c.NotAfter) + ": renew it"}
	case now.Before(c.NotBefore):
		return []string{"is not valid before " + date(c.NotBefore) + ": look at the clock, or wait"}
	}
	return nil
}

func date(t time.Time) string { return t.UTC().Format(time.DateTime) + " UTC" }

// ClientCAs reads the certificates of CAs. The error says why there is none that could be used, without the file's
// name; warnings say which could not.
func ClientCAs(data []byte, now time.Time) (all []*x509.Certificate, warnings []string, err error) {
	usable, n, private := 0, 0, false
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		private = private || strings.HasSuffix(block.Type, "PRIVATE KEY")
		if block.Type != "CERTIFICATE" {
			continue
		}
		n++
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			warnings = append(warnings, fmt.Sprintf("has a certificate at place %d that cannot be read: replace it", n))
			continue
		}
		all = append(all, c)
		problems := validity(c, now)
		if !c.IsCA {
			problems = append(problems, "is not that of a CA: only clients that have this very certificate pass")
		}
		for _, p := range problems {
			warnings = append(warnings, fmt.Sprintf("has a certificate at place %d that %s", n, p))
		}
		if now.Before(c.NotAfter) {
			usable++
		}
	}
	if private {
		warnings = append(warnings, "holds a private key, which has no business here: keep the certificates only")
	}
	switch {
	case usable > 0:
		return all, warnings, nil
	case n == 0:
		return nil, warnings, errors.New("holds no certificate: want a PEM file with the CERTIFICATE blocks of the clients' CA")
	}
	return nil, warnings, errors.New("holds no certificate that could be used: want the CERTIFICATE blocks of the clients' CA, not expired")
}
