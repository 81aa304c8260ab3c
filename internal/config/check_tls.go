package config

import (
	"crypto/tls"
	"errors"

	"gatehouse/internal/certs"
)

// maxPEMFile is the size in bytes up to which a file of certificates is read: a system's bundle of CAs has a quarter of it.
const maxPEMFile = 1 << 20

// A tlsBlock is the TLS of one listener, with the keys that its values have in the file.
type tlsBlock struct {
	needs                                string // the key that needs certificate and key
	certPath, keyPath, caPath, namesPath string
	cert, key, ca                        string
	names                                []string
	minVersion, maxVersion               TLSVersion
	host                                 string // that clients look for in the certificate; empty: not known
}

func (k *checker) webTLS(w *Web) {
	b := tlsBlock{
		needs: "web.https", certPath: "web.tlsCert", keyPath: "web.tlsKey", caPath: "web.tlsClientCA", namesPath: "web.tlsClientNames",
		cert: w.TLSCert, key: w.TLSKey, ca: w.TLSClientCA, names: w.TLSClientNames, minVersion: w.TLSMinVersion, maxVersion: w.TLSMaxVersion,
	}
	if k.c.IssuerURL != nil {
		b.host = k.c.IssuerURL.Hostname()
	}
	if w.TLSMinVersion != "" && w.TLSMaxVersion != "" && w.TLSMinVersion > w.TLSMaxVersion {
		k.errorf("web.tlsMinVersion", "is above tlsMaxVersion %s: lower it", w.TLSMaxVersion)
	}
	switch {
	case w.HTTPS != "":
		w.TLS = k.tls(b)
	case w.TLSCert != "" || w.TLSKey != "":
		k.errorf("web", "has tlsCert or tlsKey and no https: set https to the address to listen on, or remove them")
	case w.TLSClientCA != "" || len(w.TLSClientNames) > 0:
		k.errorf("web", "has tlsClientCA or tlsClientNames and no https: set https to the address to listen on, or remove them")
	}
}

func (k *checker) gatewayTLS(g *Gateway) {
	t := g.TLS
	if t == nil {
		if _, there := k.nodes["gateway.tls"]; there && !k.failedBelow("gateway.tls") {
			k.errorf("gateway.tls", "is empty: give it cert and key, or remove the line for plain text")
		}
		return
	}
	t.Material = k.tls(tlsBlock{
		needs: "gateway.tls", certPath: "gateway.tls.cert", keyPath: "gateway.tls.key", caPath: "gateway.tls.clientCA",
		namesPath: "gateway.tls.clientNames",
		cert:      t.Cert, key: t.Key, ca: t.ClientCA, names: t.ClientNames, minVersion: t.MinVersion,
	})
}

// tls reads the files of a listener. It returns nil where one of them cannot be used.
func (k *checker) tls(b tlsBlock) *certs.Material {
	before := len(k.errs)
	m := &certs.Material{MinVersion: tls.VersionTLS12}
	if b.minVersion == "1.3" {
		m.MinVersion = tls.VersionTLS13
	}
	if b.maxVersion == "1.2" {
		m.MaxVersion = tls.VersionTLS12
	}
	for _, needed := range []struct{ path, file string }{{b.certPath, b.cert}, {b.keyPath, b.key}} {
		if needed.file == "" && !k.failed(needed.path) {
			k.errorf(needed.path, "is missing: %s needs a PEM file here", ours(b.needs))
		}
	}
	k.pair(b, m)
	k.clientCA(b, m)
	if len(k.errs) > before || k.failed(b.certPath) || k.failed(b.keyPath) {
		return nil
	}
	return m
}

// pair reads the certificate and its key.
func (k *checker) pair(b tlsBlock, m *certs.Material) {
	cert, certOK := k.file(b.certPath, b.cert)
	key, keyOK := k.file(b.keyPath, b.key)
	if !certOK || !keyOK {
		return
	}
	pair, err := certs.Pair(cert, key)
	if err != nil {
		problem, _ := errors.AsType[*certs.Problem](err)
		if problem.Part == certs.KeyFile {
			k.errorf(b.keyPath, "%s %s", b.key, ours(problem.Text))
		} else {
			k.errorf(b.certPath, "%s %s", b.cert, ours(problem.Text))
		}
		return
	}
	m.Certificate = pair
	for _, w := range certs.Warnings(pair, b.host, k.opts.Now()) {
		k.warnf(b.certPath, "%s %s", b.cert, ours(w))
	}
	// A group may read it: Kubernetes gives every file of a Secret to the group of the pod's volumes.
	if mode, err := k.opts.Mode(b.key); err == nil && mode.Perm()&0o007 != 0 {
		k.warnf(b.keyPath, "%s is open to every user (mode %04o): chmod o-rwx %s, or defaultMode: 0440 for a Kubernetes Secret", b.key, mode.Perm(), b.key)
	}
}

// clientCA reads whom the listener lets in.
func (k *checker) clientCA(b tlsBlock, m *certs.Material) {
	bad := false
	for i, name := range b.names {
		if err := certs.ParseName(name); err != nil && !k.failed(element(b.namesPath, i)) {
			k.errorf(element(b.namesPath, i), "%q: %v", name, err)
			bad = true
		}
	}
	if b.ca == "" {
		if len(b.names) > 0 && !k.failed(b.caPath) {
			k.errorf(b.namesPath, "has no effect without %s: name the file with the CA of the clients there, or remove the names", ours(b.caPath))
		}
		return
	}
	data, ok := k.file(b.caPath, b.ca)
	if !ok {
		return
	}
	all, warnings, err := certs.ClientCAs(data, k.opts.Now())
	for _, w := range warnings {
		k.warnf(b.caPath, "%s %s", b.ca, ours(w))
	}
	if err != nil {
		k.errorf(b.caPath, "%s %s", b.ca, ours(err.Error()))
		return
	}
	m.ClientCAs = all
	if bad {
		return
	}
	if m.ClientNames, err = certs.NewNames(b.names); err != nil {
		k.errorf(b.namesPath, "%v", err)
	}
}

// file returns what is in the file that the key at path names.
func (k *checker) file(path, name string) ([]byte, bool) {
	if name == "" || k.failed(path) {
		return nil, false
	}
	data, err := k.opts.ReadFile(name)
	if err != nil {
		k.errorf(path, "%s: %s", name, ours(fileProblem(err)))
		return nil, false
	}
	if len(data) > maxPEMFile {
		k.errorf(path, "%s has %d bytes: want at most %d", name, len(data), maxPEMFile)
		return nil, false
	}
	return data, true
}
