package istio

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"gatehouse/test/peers"
)

// An api is the Kubernetes API, for what the node asks several times a second.
type api struct {
	url, token string
	http       *http.Client
}

func newAPI(t *testing.T, url, token string, ca *peers.CA) *api {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(ca.Certificate)
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	t.Cleanup(tr.CloseIdleConnections)
	return &api{url: url, token: token, http: &http.Client{Transport: tr, Timeout: 10 * time.Second}}
}

// get reads path into out, unless that is nil, and returns the status code, 0 if there is no answer.
func (a *api) get(t testing.TB, path string, out any) int {
	t.Helper()
	code, err := a.do(t.Context(), http.MethodGet, path, "", nil, out)
	if err != nil && !errors.Is(err, errNoAnswer) {
		t.Fatal(err)
	}
	return code
}

var errNoAnswer = errors.New("no answer")

// do sends in as JSON of a kind, unless it is nil, and reads the answer into out where that is 200 or 201.
func (a *api) do(ctx context.Context, method, path, kind string, in, out any) (int, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return 0, err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, a.url+path, body)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+a.token)
	if in != nil {
		req.Header.Set("Content-Type", kind)
	}
	res, err := a.http.Do(req)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	switch {
	case res.StatusCode >= 300 && in != nil:
		return res.StatusCode, fmt.Errorf("%s %s: %s: %s", method, path, res.Status, text)
	case out != nil && res.StatusCode < 300:
		if err := json.Unmarshal(text, out); err != nil {
			return 0, fmt.Errorf("%s %s: %w", method, path, err)
		}
	}
	return res.StatusCode, nil
}

// apply makes obj as the field manager "node".
func (a *api) apply(ctx context.Context, path string, obj any) error {
	_, err := a.do(ctx, http.MethodPatch, path+"?fieldManager=node&force=true", "application/apply-patch+yaml", obj, nil)
	return err
}
