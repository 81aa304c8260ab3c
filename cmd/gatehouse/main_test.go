package main

import (
	"context"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"gatehouse/test/peers"
)

// TestMain lets the test binary be gatehouse, as an operator meets it.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"gatehouse": func() { os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
	})
}

func TestScripts(t *testing.T) {
	files := certificates(t)
	testscript.Run(t, testscript.Params{Dir: "testdata/script", Setup: func(e *testscript.Env) error {
		for name, data := range files {
			if err := os.WriteFile(filepath.Join(e.WorkDir, name), data, 0o600); err != nil {
				return err
			}
		}
		return nil
	}})
}

// certificates are files that every script finds: a CA, a certificate of it for auth.example.com, and what is wrong with others.
func certificates(t *testing.T) map[string][]byte {
	t.Helper()
	ca := peers.NewCA(t, "ca")
	key := peers.NewKey(t)
	expired := peers.Template("auth.example.com")
	expired.NotAfter = expired.NotBefore.Add(time.Minute)
	_, otherKey := ca.Issue(t, "other")
	block, _ := pem.Decode(otherKey)
	block.Type = "ENCRYPTED PRIVATE KEY"
	certificate := ca.Sign(t, peers.Template("auth.example.com"), key.Public())
	return map[string][]byte{
		"ca.crt": ca.PEM, "tls.crt": certificate, "tls.key": peers.KeyPEM(t, key), "expired.crt": ca.Sign(t, expired, key.Public()),
		"wrong-order.crt": slices.Concat(ca.PEM, certificate), "other.key": otherKey, "encrypted.key": pem.EncodeToMemory(block),
	}
}
