package envoy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// sendHTTP2 is send over HTTP/2 with prior knowledge (RFC 9113 section 3.3). Header lines are sent as they are, but for names in
// lower case; a line that begins with a colon adds a pseudo-header. Where Envoy resets the stream or ends the connection, the status is 0.
func (e *edge) sendHTTP2(ctx context.Context, m message) (*page, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	conn, err := e.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return nil, err
	}
	f := http2.NewFramer(conn, conn)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := f.WriteSettings(); err != nil {
		return nil, err
	}
	if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: m.hpack(), EndHeaders: true, EndStream: true}); err != nil {
		return nil, err
	}
	p := &page{url: &url.URL{Scheme: "http", Host: m.host, Opaque: m.target}, header: http.Header{}}
	return p, p.read(f)
}

func (m message) hpack() []byte {
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	write := func(name, value string) { _ = enc.WriteField(hpack.HeaderField{Name: name, Value: value}) } // into memory
	write(":method", m.method)
	if m.host != "" {
		write(":authority", m.host)
	}
	write(":path", m.target)
	if !hasLine(m.lines, ":scheme") {
		write(":scheme", "http")
	}
	for _, pseudo := range []bool{true, false} {
		for _, l := range m.lines {
			if strings.HasPrefix(l, ":") == pseudo {
				i := strings.Index(l[1:], ":") + 1
				write(strings.ToLower(l[:i]), strings.TrimPrefix(l[i+1:], " "))
			}
		}
	}
	return block.Bytes()
}

// read takes the frames of the only stream.
func (p *page) read(f *http2.Framer) error {
	var body bytes.Buffer
	for {
		frame, err := f.ReadFrame()
		if p.status == 0 && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)) {
			return nil // closed
		}
		if err != nil {
			return err
		}
		end := false
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			for _, h := range frame.Fields {
				if h.Name == ":status" {
					if p.status, err = strconv.Atoi(h.Value); err != nil {
						return err
					}
				} else {
					p.header.Add(h.Name, h.Value)
				}
			}
			end = frame.StreamEnded()
		case *http2.DataFrame:
			body.Write(frame.Data())
			end = frame.StreamEnded()
		case *http2.RSTStreamFrame:
			end = true
		case *http2.GoAwayFrame:
			end = frame.LastStreamID == 0 // before any stream was taken up
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				if err = f.WriteSettingsAck(); errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
					err = nil // Envoy has ended the connection meanwhile: what it said before can still be read
				}
			}
		}
		if err != nil {
			return fmt.Errorf("HTTP/2: %w", err)
		}
		if end {
			p.body = body.String()
			return nil
		}
	}
}

// http2Rows are what HTTP/2 says in another way than HTTP/1.1.
func http2Rows() (all []row) {
	for _, r := range []row{
		{name: "good", as: user, both: passes(http.StatusOK)},
		{name: "nobody", both: refused(http.StatusFound), check: leadsToIssuer},
		{name: "who may not", as: user, target: "/admin/x", both: refused(http.StatusForbidden)},
		{name: "cookie in pieces", as: user, lines: []string{"cookie: a=1", "cookie: gatehouse-dev={user}", "cookie: b=2"}, both: passes(http.StatusOK), check: appSeesCookie("a=1; b=2")},
		{name: "two users' cookies in pieces", lines: []string{"cookie: gatehouse-dev={user}", "cookie: gatehouse-dev={admin}"}, both: refused(http.StatusFound)},
		{name: "forged header twice", as: user, lines: []string{"kubeflow-userid: admin@example.com", "kubeflow-userid: x", "kubeflow.userid: x"}, both: passes(http.StatusOK)},
		{name: "forged header where anyone may", target: "/public/headers", lines: []string{"kubeflow-userid: admin@example.com", "kubeflow.userid: x"}, both: passes(http.StatusOK)},
		{name: "underscore", target: "/public/headers", lines: []string{"kubeflow_userid: admin@example.com"}, relaxed: passes(http.StatusOK)},
		{name: "two slashes", as: user, target: "//admin/x", hardened: refused(http.StatusForbidden), relaxed: refused(http.StatusBadRequest)},
		{name: "dot segments", as: user, target: "/public/../admin/x", hardened: refused(http.StatusForbidden), relaxed: refused(http.StatusBadRequest)},
		{name: "raw non-ASCII", as: user, target: "/admin/\xc3\xbc", hardened: refused(http.StatusForbidden), relaxed: refused(http.StatusBadRequest)},
		{name: "Host beside authority", as: user, lines: []string{"host: unlisted.example.test"}, both: passes(http.StatusOK), check: appSeesHost(appHost)},
		{name: "unlisted authority, good Host", as: user, host: unlistedHost, lines: []string{"host: app.example.test"}, both: refused(http.StatusForbidden)},
		{name: "scheme decides nothing", lines: []string{":scheme: https"}, both: refused(http.StatusFound), check: leadsToIssuer},
		{name: "fragment", target: "/public/x#", both: byEnvoy(http.StatusBadRequest), istio: passes(http.StatusNotFound), check: appSeesPath("/public/x")}, // see pathRows
		{name: "gRPC", method: "POST", target: "/pkg.Service/Method", lines: []string{"content-type: application/grpc", "te: trailers"}, both: refused(http.StatusOK), check: grpcStatus("16")},
	} {
		r.family, r.http2 = "http2", true
		all = append(all, r)
	}
	return append(all, row{family: "http2", name: "malformed: Envoy ends the connection", on: []string{"hardened", "relaxed"}, play: malformed})
}

// malformed sends, all at once, what breaks RFC 9113 section 8: Envoy takes a second to end such a connection, without an answer.
// Nobody else sees the requests.
func malformed(t testing.TB, w *world, e *edge) {
	requests := map[string]message{
		"path without a slash":  {target: "admin/x"},
		"path that is a URL":    {target: "http://app.example.test/admin/x"},
		"empty path":            {target: ""},
		"two paths":             {target: "/headers", lines: []string{":path: /public/x"}},
		"two authorities":       {target: "/headers", lines: []string{":authority: evil.example"}},
		"authority with a user": {target: "/headers", host: "evil.example@app.example.test"},
		"Connection":            {target: "/headers", lines: []string{"connection: kubeflow-userid"}},
		"Upgrade":               {target: "/headers", lines: []string{"upgrade: websocket"}},
		"CONNECT for WebSocket": {method: "CONNECT", target: "/admin/x", lines: []string{":protocol: websocket"}},
	}
	if e == w.hardened {
		requests["underscore"] = message{target: "/public/headers", lines: []string{"kubeflow_userid: admin@example.com"}}
	}
	before := w.checks(t)
	var wg sync.WaitGroup
	for name, m := range requests {
		m.method, m.host, m.lines = or(m.method, http.MethodGet), or(m.host, appHost), append(m.lines, "accept: text/html")
		wg.Go(func() {
			p, err := e.sendHTTP2(t.Context(), m)
			if err != nil || p.status != 0 {
				t.Errorf("%s: got %s, %v, want no answer", name, p, err)
			}
		})
	}
	wg.Wait()
	if n := w.checks(t) - before; n != 0 {
		t.Errorf("Gatehouse was asked %d times", n)
	}
	if a := w.app.take(); len(a) != 0 {
		t.Errorf("reached the app: %+v", a)
	}
}

func appSeesCookie(want string) func(testing.TB, *world, *page) {
	return func(t testing.TB, _ *world, p *page) {
		t.Helper()
		var h map[string]string
		jsonBody(t, p, &h)
		if h["cookie"] != want {
			t.Errorf("the app sees cookies %q, want %q", h["cookie"], want)
		}
	}
}
