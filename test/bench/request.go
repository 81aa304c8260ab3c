package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/proto"
)

const (
	host = "kubeflow.example.com"
	path = "/pipeline/api/v1/runs?page=1"
)

// headers are those of a script in a browser, without the cookie.
func headers() [][2]string {
	return [][2]string{
		{"user-agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0 Safari/537.36"},
		{"accept", "application/json, text/plain, */*"},
		{"accept-encoding", "gzip, deflate, br"},
		{"accept-language", "en-US,en;q=0.9"},
		{"x-forwarded-for", "10.1.2.3"},
		{"x-forwarded-proto", "https"},
		{"x-request-id", "3f6d8a10-1111-2222-3333-444455556666"},
		{"referer", "https://" + host + "/pipeline/"},
		{"sec-fetch-dest", "empty"},
		{"sec-fetch-mode", "cors"},
		{"sec-fetch-site", "same-origin"},
	}
}

// cookieHeader is what a browser sends that has a session and a cookie of the app's own.
func cookieHeader(session string) string { return "_ga=GA1.2.3.4; " + session }

// checkRequest is what Envoy makes of a request with these headers.
func checkRequest(method, host, path string, headers [][2]string) *authv3.CheckRequest {
	h := map[string]string{":authority": host, ":path": path, ":method": method, ":scheme": "https"}
	for _, kv := range headers {
		h[kv[0]] = kv[1]
	}
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{
		Http: &authv3.AttributeContext_HttpRequest{
			Id: "1234567890", Method: method, Headers: h, Path: path, Host: host, Scheme: "https", Protocol: "HTTP/2",
		},
	}}}
}

// A blank is a marshalled CheckRequest in which one cookie can be replaced by another of the same length, so that a
// request costs the load generator no more than a copy.
type blank struct {
	text   []byte
	at     int // where the cookie begins
	length int
}

func newBlank(cookies []string) (blank, error) {
	if len(cookies) == 0 {
		return blank{}, errors.New("no cookies")
	}
	for _, c := range cookies {
		if len(c) != len(cookies[0]) {
			return blank{}, fmt.Errorf("got cookies of %d and %d bytes, want all of one length", len(cookies[0]), len(c))
		}
	}
	h := append(headers(), [2]string{"cookie", cookieHeader(cookies[0])})
	text, err := proto.MarshalOptions{Deterministic: true}.Marshal(checkRequest(http.MethodGet, host, path, h))
	if err != nil {
		return blank{}, err
	}
	return blank{text: text, at: bytes.Index(text, []byte(cookies[0])), length: len(cookies[0])}, nil
}

// put writes the request with a cookie to buf, which was made by buffer.
func (t blank) put(buf []byte, cookie string) { copy(buf[t.at:t.at+t.length], cookie) }

// buffer returns a request for put.
func (t blank) buffer() []byte { return bytes.Clone(t.text) }

// requestHead is an HTTP/1.1 request up to the value of the session cookie, which is its last line.
func requestHead(path string) []byte {
	b := []byte("GET " + path + " HTTP/1.1\r\nhost: " + host + "\r\n")
	for _, kv := range headers() {
		b = append(b, kv[0]+": "+kv[1]+"\r\n"...)
	}
	return append(b, "cookie: "+cookieHeader("")...)
}
