package ldap

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"gatehouse/connectors"

	ber "github.com/go-asn1-ber/asn1-ber"
	ldapv3 "github.com/go-ldap/ldap/v3"
)

// headStart is how long a host is waited for before the next one is tried beside it. tooLong is how long one is waited for at least before it is put aside for
// not answering somebody who had no more time.
const (
	headStart = 250 * time.Millisecond
	tooLong   = time.Second
)

// dialAny returns a connection to the best host that answers. Hosts are tried in order, the next one as soon as one fails or has had its head start.
func (c *client) dialAny(ctx context.Context, avoid *endpoint, service bool) (*conn, error) {
	order, err := c.hosts.order(ctx, avoid)
	if err != nil {
		return nil, err
	}
	return c.dial(ctx, order, service)
}

// dial makes a connection to the first of these hosts that answers.
func (c *client) dial(ctx context.Context, order []*endpoint, service bool) (*conn, error) {
	r := &race{client: c, order: order, service: service, done: make(chan arrival), begun: map[*endpoint]time.Time{}}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // what is still under way ends
	return r.run(ctx)
}

// A race is the dialling of several hosts for one connection.
type race struct {
	*client
	order   []*endpoint
	service bool
	done    chan arrival
	begun   map[*endpoint]time.Time // of those under way
	errs    []error
}

type arrival struct {
	e    *endpoint
	conn *conn
	err  error
}

func (r *race) run(ctx context.Context) (*conn, error) {
	next := 0
	begin := func() {
		if next == len(r.order) {
			return
		}
		e := r.order[next]
		next++
		r.begun[e] = time.Now()
		r.spawn(func() { r.try(ctx, e) }) // else ctx ends
	}
	begin()
	ticker := time.NewTicker(r.t.headStart)
	defer ticker.Stop()
	for len(r.begun) > 0 {
		select {
		case a := <-r.done:
			switch {
			case a.err == nil:
				return r.won(a), nil
			case errors.As(a.err, new(*serviceRefused)):
				return nil, a.err // the others would say the same, and count it too
			}
			r.errs = append(r.errs, a.err)
			if ctx.Err() != nil {
				return nil, r.lost(ctx)
			}
			delete(r.begun, a.e)
			r.hosts.bad(a.e, a.err)
			r.purge(a.e)
			begin()
			ticker.Reset(r.t.headStart)
		case <-ticker.C:
			begin()
		case <-ctx.Done():
			return nil, r.lost(ctx)
		}
	}
	return nil, fmt.Errorf("%w: %w", errNoDirectory, errors.Join(r.errs...))
}

func (r *race) try(ctx context.Context, e *endpoint) {
	k, err := r.connect(ctx, e, r.service)
	select {
	case r.done <- arrival{e, k, err}:
	case <-ctx.Done():
		if k != nil {
			r.discard(k)
		}
	}
}

func (r *race) won(a arrival) *conn {
	delete(r.begun, a.e)
	r.late(r.t.headStart)
	r.hosts.good(a.e)
	if a.e != r.order[0] {
		r.stats.failovers.Add(1)
	}
	return a.conn
}

func (r *race) lost(ctx context.Context) error {
	r.late(tooLong)
	return fmt.Errorf("%w: %w", errNoDirectory, errors.Join(append(r.errs, ctx.Err())...))
}

// late puts those aside that have been under way for so long.
func (r *race) late(d time.Duration) {
	for e, since := range r.begun {
		if time.Since(since) >= d {
			r.hosts.bad(e, fmt.Errorf("no connection to %s in %v", e.addr, time.Since(since).Round(time.Millisecond)))
			r.purge(e)
		}
	}
}

// connect makes one connection to one host, bound as the service account if it is for that.
func (c *client) connect(ctx context.Context, e *endpoint, service bool) (*conn, error) {
	e.dials.Add(1)
	k, err := c.open(ctx, e)
	if err != nil {
		e.failed.Add(1)
		return nil, err
	}
	k.service = service
	c.keepTrack(k)
	if service {
		c.stats.serviceDials.Add(1)
		if err = c.bindService(ctx, k); err != nil {
			e.failed.Add(1)
			c.discard(k)
			return nil, err
		}
	} else {
		c.stats.userDials.Add(1)
	}
	return k, nil
}

// open makes one connection, protected as it has to be, within the time for dialling.
func (c *client) open(ctx context.Context, e *endpoint) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.t.dialTimeout)
	defer cancel()
	tcp, err := c.dialTCP(ctx, "tcp", e.addr)
	if err != nil {
		return nil, fmt.Errorf("ldap: %s: %w", e.addr, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = tcp.Close() })
	secured, err := c.secure(ctx, tcp, e)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = tcp.Close()
		return nil, fmt.Errorf("ldap: %s: %w", e.addr, err)
	}
	return newConn(e, newWire(secured, tcp), c.t.security != plain), nil
}

// secure puts TLS on a connection, unless it is to be plain.
func (c *client) secure(ctx context.Context, tcp net.Conn, e *endpoint) (net.Conn, error) {
	if c.t.security == plain {
		return tcp, nil
	}
	cfg, err := c.tlsConfig(e)
	if err != nil {
		return nil, err
	}
	if c.t.security == startTLS {
		if err := askStartTLS(tcp); err != nil {
			return nil, err
		}
	}
	s := tls.Client(tcp, cfg)
	if err := s.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return s, nil
}

func (c *client) tlsConfig(e *endpoint) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.t.tls != nil {
		given, err := c.t.tls()
		if err != nil {
			return nil, err
		}
		if given != nil {
			cfg = given.Clone()
		}
	}
	cfg.MinVersion = max(cfg.MinVersion, tls.VersionTLS12)
	if cfg.ServerName == "" {
		cfg.ServerName = e.name
	}
	return cfg, nil
}

// errStartTLS means that a server does not start TLS, or somebody between keeps it from it. Nothing is sent to it then.
var errStartTLS = errors.New("the server does not start TLS")

// askStartTLS asks for TLS (RFC 4511 section 4.14). It reads exactly one message: what somebody puts after it goes into the handshake, which then fails.
func askStartTLS(conn net.Conn) error {
	p := ber.NewSequence("")
	p.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagInteger, 1, ""))
	op := ber.Encode(ber.ClassApplication, ber.TypeConstructed, ldapv3.ApplicationExtendedRequest, nil, "")
	op.AppendChild(ber.NewString(ber.ClassContext, ber.TypePrimitive, 0, "1.3.6.1.4.1.1466.20037", ""))
	p.AppendChild(op)
	if _, err := conn.Write(p.Bytes()); err != nil {
		return fmt.Errorf("StartTLS: %w", err)
	}
	m, err := readMessage(conn, func() int64 { return maxControls })
	if err != nil {
		return fmt.Errorf("StartTLS: %w", err)
	}
	answer, err := ber.DecodePacketErr(m)
	if err != nil {
		return fmt.Errorf("StartTLS: %w", err)
	}
	if len(answer.Children) < 2 || answer.Children[0].Value != int64(1) || answer.Children[1].Tag != ldapv3.ApplicationExtendedResponse {
		return fmt.Errorf("%w: the answer is to something else", errStartTLS)
	}
	if err := ldapv3.GetLDAPError(answer); err != nil {
		return fmt.Errorf("%w: %w", errStartTLS, cleanError(err))
	}
	return nil
}

// A serviceRefused is the refusal of the service account's bind.
type serviceRefused struct {
	name string
	addr string
	err  error
}

func (e *serviceRefused) Error() string {
	return fmt.Sprintf("ldap: %s refuses the bind of the service account %q: %v", e.addr, e.name, e.err)
}
func (e *serviceRefused) Unwrap() error { return e.err }

// bindService binds as the service account. A refusal is not tried again for a while: it may count towards the account's lock-out.
func (c *client) bindService(ctx context.Context, k *conn) error {
	if c.t.bindDN == "" {
		return nil
	}
	if c.t.bindPW == "" {
		return &serviceRefused{c.t.bindDN, k.e.addr, errEmpty}
	}
	if err := c.refusal.holds(c.now()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.t.requestTimeout)
	defer cancel()
	v, err := c.bindOn(ctx, k, c.t.bindDN, c.t.bindPW)
	switch {
	case err != nil:
		return fmt.Errorf("ldap: %s: bind of the service account: %w", k.e.addr, err)
	case v.code == ldapv3.LDAPResultSuccess:
		c.refusal.clear()
		return nil
	}
	err = &ldapv3.Error{ResultCode: v.code, Err: errors.New(v.diagnostic)}
	if slices.Contains(unavailable, v.code) {
		return fmt.Errorf("ldap: %s: bind of the service account: %w", k.e.addr, err)
	}
	refused := &serviceRefused{c.t.bindDN, k.e.addr, err}
	r, _ := reasonOf(v)
	c.refusal.set(refused, c.now(), r == connectors.WrongCredentials)
	return refused
}
