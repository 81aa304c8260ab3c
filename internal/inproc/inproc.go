// Package inproc lets a client talk to an http.Handler of the same process, without a socket.
package inproc

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
)

// Serve runs one request through h and returns its buffered response. RequestURI, Body and RemoteAddr are
// filled in where they are empty, as handlers expect them of a server. A panic of the handler is an error:
// net/http recovers only on connections of its own.
func Serve(h http.Handler, r *http.Request) (resp *http.Response, err error) {
	in := r.Clone(r.Context())
	in.RequestURI = r.URL.RequestURI()
	if in.Host == "" {
		in.Host = r.URL.Host
	}
	if in.RemoteAddr == "" {
		in.RemoteAddr = "127.0.0.1:1"
	}
	in.Proto, in.ProtoMajor, in.ProtoMinor = "HTTP/1.1", 1, 1
	if in.Body == nil {
		in.Body = http.NoBody
	}
	w := &recorder{header: http.Header{}}
	defer func() {
		if p := recover(); p != nil {
			resp, err = nil, fmt.Errorf("inproc: %s %s: handler panic: %v", r.Method, r.URL.Path, p)
		}
	}()
	h.ServeHTTP(w, in)
	w.WriteHeader(http.StatusOK)
	return &http.Response{
		Status: http.StatusText(w.code), StatusCode: w.code,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: w.sent, Body: io.NopCloser(bytes.NewReader(w.body.Bytes())), ContentLength: int64(w.body.Len()),
		Request: r,
	}, nil
}

// A Transport is an http.RoundTripper that answers every request from Handler.
type Transport struct{ Handler http.Handler }

// RoundTrip implements http.RoundTripper.
func (t Transport) RoundTrip(r *http.Request) (*http.Response, error) { return Serve(t.Handler, r) }

type recorder struct {
	header, sent http.Header
	code         int
	body         bytes.Buffer
}

func (w *recorder) Header() http.Header { return w.header }

func (w *recorder) WriteHeader(code int) {
	if w.code == 0 {
		w.code, w.sent = code, w.header.Clone()
	}
}

func (w *recorder) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(p)
}
