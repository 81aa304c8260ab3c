package ldap

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"time"

	ldapv3 "github.com/go-ldap/ldap/v3"
)

// A security is how a connection is protected.
type security uint8

const (
	ldaps security = iota
	startTLS
	plain
)

// A transport says how to reach a directory.
type transport struct {
	hosts        []string // host or host:port, the preferred ones first; empty: by SRV records of domain
	domain, site string   // _ldap._tcp.<domain>, or _ldap._tcp.<site>._sites.dc._msdcs.<domain>, first
	security     security
	tls          func() (*tls.Config, error) // read anew for each connection, so that a new CA or certificate is taken up; nil with plain

	bindDN, bindPW string // of the service account; empty: anonymous
	dialTimeout    time.Duration
	requestTimeout time.Duration // for one request to the directory, within the caller's deadline
	connections    int           // service connections at most; as many again for the binds of users
	idle           time.Duration // after which a connection is closed
	pageSize       int           // entries asked for at a time (RFC 2696)
	follow         bool          // referrals, to configured hosts only; else they are ignored
}

// A client talks to a directory: over connections that it keeps, to whichever host answers.
type client struct{}

func newClient(t transport, now func() time.Time, log *slog.Logger) *client { return nil }

// close ends all connections; what is under way fails.
func (c *client) close() {}

// A query is a search for entries.
type query struct {
	base       string
	scope      int // of package ldapv3
	filter     string
	attributes []string // "1.1": none
	limit      int      // more entries than this are errTooMany
}

// errTooMany means that more was found than a query wants. errNoDirectory means that no host answered in time.
var (
	errTooMany     = errors.New("ldap: more entries than expected")
	errNoDirectory = errors.New("ldap: no directory server answers")
)

// An entry is what was found. Names of attributes are taken in any case and without options; ranges are put together.
type entry struct {
	dn         string
	attributes map[string][][]byte // by lower-case name
}

// search runs a query on a service connection: all pages and all ranges of it. A base that does not exist has no entries. A connection that turns out
// to be broken costs one more try, at another host where there is one.
func (c *client) search(ctx context.Context, q query) ([]*entry, error) { return nil, nil }

// A verdict is the directory's answer to a bind.
type verdict struct {
	code       uint16                              // LDAP result code; 0: the password is right
	diagnostic string                              // what the server says besides, such as AD's "... data 533 ..."
	policy     *ldapv3.ControlBeheraPasswordPolicy // nil: the server said nothing of it
}

// bind tries a user's password, on a connection on which nothing but binds happens. An error means that it was not tried or that no answer came: it is
// not tried a second time once it may have been counted as a failure. password is never empty.
func (c *client) bind(ctx context.Context, name, password string) (verdict, error) {
	return verdict{}, nil
}

// service calls f with a service connection of its own, asUser with one that is bound as a user; both within the deadline of ctx. f must not keep it.
func (c *client) service(ctx context.Context, f func(*ldapv3.Conn) error) error { return nil }
func (c *client) asUser(ctx context.Context, name, password string, f func(*ldapv3.Conn) error) (verdict, error) {
	return verdict{}, nil
}

// host is where the last answer came from, "" before the first; for logs and for telling people.
func (c *client) host() string { return "" }
