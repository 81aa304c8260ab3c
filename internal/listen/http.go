package listen

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// Limits of HTTP listeners. Sign-ins through a slow directory are the slowest answers. Idle connections live longer
// than a gateway keeps them (Envoy: an hour): whoever closes first must be the one that knows whether a request is on
// its way.
const (
	headerTimeout = 10 * time.Second // for the header of a request, and for a handshake
	readTimeout   = 30 * time.Second // for a whole request
	writeTimeout  = 90 * time.Second // for request and answer
	idleTimeout   = 65 * time.Minute

	maxHeaderBytes = 64 << 10 // as much as gateways pass (Envoy: 60 KiB)
	maxHeaders     = 256      // lines; gateways pass 100

	maxStreams      = 100      // of one HTTP/2 connection, as RFC 9113 section 6.5.2 advises at least
	maxFrame        = 16 << 10 // bytes, the smallest that there is
	streamBuffer    = 64 << 10 // bytes of a body that wait to be read
	connectionBytes = 256 << 10
	pingAfter       = time.Minute // of silence on HTTP/2
	pingTimeout     = 15 * time.Second
)

// Server returns a server for the connections of l: each request is limited in time, header and number of header lines,
// and its body to maxBody bytes.
func (l *Listener) Server(h http.Handler, maxBody int64) *http.Server {
	return &http.Server{
		Handler: limit(h, maxBody), ConnContext: withConn,
		ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeaderBytes, ErrorLog: slog.NewLogLogger(l.o.Log.Handler(), slog.LevelDebug),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams, MaxReadFrameSize: maxFrame, MaxReceiveBufferPerStream: streamBuffer, MaxReceiveBufferPerConnection: connectionBytes,
			SendPingTimeout: pingAfter, PingTimeout: pingTimeout, WriteByteTimeout: readTimeout,
		},
	}
}

type connKey struct{}

// withConn lets requests find their connection.
func withConn(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	return context.WithValue(ctx, connKey{}, c)
}

// limit refuses too many header lines, limits the body, and tells the connection when it is of use: from the end of a
// request's body to the end of its answer.
func limit(next http.Handler, maxBody int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		lines := 0
		for _, values := range r.Header {
			lines += len(values)
		}
		if lines > maxHeaders {
			w.Header().Set("Connection", "close")
			http.Error(w, "too many header lines", http.StatusRequestHeaderFieldsTooLarge)
			return
		}
		c, ok := r.Context().Value(connKey{}).(*conn)
		if !ok {
			http.Error(w, "no connection", http.StatusInternalServerError) // not of a Listener: nothing is limited there
			return
		}
		var once sync.Once
		begun := false
		begin := func() { once.Do(func() { begun = true; c.begin() }) }
		defer func() {
			once.Do(func() {})
			if begun {
				c.end()
			}
		}()
		r = r.WithContext(r.Context()) // a copy: the server looks at the Body of the first when the handler is done
		if r.Body == nil || r.Body == http.NoBody {
			begin()
		} else {
			r.Body = &body{http.MaxBytesReader(w, r.Body, maxBody), begin}
		}
		next.ServeHTTP(w, r)
	})
}

// A body says when it has been read.
type body struct {
	io.ReadCloser
	done func()
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.done()
	}
	return n, err
}
