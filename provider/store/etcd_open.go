package store

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

// EtcdOptions say where an etcd is, as Dex's storage.config does.
type EtcdOptions struct {
	Endpoints          []string // http://host:port, https://host:port, or host:port with the scheme that SSL leads to
	Namespace          string   // before every key; Gatehouse's keys begin with "gatehouse/" after that
	Username, Password string
	SSL                EtcdSSL
}

// EtcdSSL says how to trust etcd and how to be trusted by it. With none of it, https:// endpoints are verified by the system's roots.
type EtcdSSL struct {
	ServerName string // expected in the server's certificate instead of the endpoint's host
	CAFile     string // PEM; instead of the system's roots
	KeyFile    string // of CertFile
	CertFile   string // of this client; read again for each connection, so that it can be renewed
}

// OpenEtcd returns a Store in etcd 3.4 or later. Several processes may share it. Errors say what to do: not reachable, not trusted, no
// permission, made by a newer Gatehouse.
func OpenEtcd(ctx context.Context, e EtcdOptions, o Options) (*Store, error) {
	o = o.withDefaults()
	d, err := openEtcd(ctx, e, o.Logger)
	if err != nil {
		return nil, err
	}
	return newOrClose(ctx, d, o)
}

// etcdFormat is the version of the layout of the keys: see etcdDriver.
const etcdFormat = "1"

func openEtcd(ctx context.Context, e EtcdOptions, log *slog.Logger) (_ *etcdDriver, err error) {
	endpoints, tlsConfig, err := e.check()
	if err != nil {
		return nil, err
	}
	if e.Password != "" && tlsConfig == nil {
		log.WarnContext(ctx, "the password for etcd goes over the network in the clear: use https endpoints", "endpoints", endpoints)
	}
	config := clientv3.Config{
		Endpoints: endpoints, TLS: tlsConfig,
		DialTimeout: etcdTimeout, DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: etcdTimeout,
		DialOptions: e.dialOptions(tlsConfig),
		Context:     context.WithoutCancel(ctx), // lives as long as the store
		Logger:      zap.NewNop(),               // what goes wrong is said by errors
	}
	d := &etcdDriver{timeout: etcdTimeout, prefix: e.Namespace + "gatehouse/", writer: rand.Text()}
	if e.Username != "" {
		if d.anonymous, err = clientv3.New(config); err != nil {
			return nil, d.failed(ctx, "open "+strings.Join(endpoints, ","), err)
		}
		config.Username, config.Password = e.Username, e.Password
		config.DialOptions = append(config.DialOptions, grpc.WithChainUnaryInterceptor(authenticateOver(d.anonymous.ActiveConnection())))
	}
	if d.client, err = clientv3.New(config); err != nil {
		return nil, errors.Join(d.failed(ctx, "open "+strings.Join(endpoints, ","), err), d.Close())
	}
	if err = d.setUp(ctx); err == nil {
		err = d.learnSegment(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w (endpoints %s)", err, strings.Join(endpoints, ",")), d.Close())
	}
	return d, nil
}

// setUp makes the keys ours if there are none yet.
func (d *etcdDriver) setUp(ctx context.Context) error {
	key := d.formatKey()
	res, err := d.txn(ctx, "open", []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(key), "=", 0)},
		[]clientv3.Op{clientv3.OpPut(key, etcdFormat)}, []clientv3.Op{clientv3.OpGet(key)})
	if err != nil || res.Succeeded {
		return err
	}
	if got := string(res.Responses[0].GetResponseRange().Kvs[0].Value); got != etcdFormat {
		return fmt.Errorf("store: etcd: the keys below %q are of format %q and this Gatehouse knows format %s: run the newer Gatehouse that made them, or set another storage.config.namespace", d.prefix, got, etcdFormat)
	}
	return nil
}

// check returns the endpoints and how to secure connections to them; nil: not at all.
func (e EtcdOptions) check() (endpoints []string, _ *tls.Config, err error) {
	if len(e.Endpoints) == 0 {
		return nil, nil, errors.New("store: etcd needs endpoints: set storage.config.endpoints, for example [https://etcd.example.com:2379]")
	}
	if (e.Username == "") != (e.Password == "") {
		return nil, nil, errors.New("store: etcd: storage.config needs both username and password, or neither of them")
	}
	secure, plain := 0, 0
	for _, endpoint := range e.Endpoints {
		scheme, host, found := strings.Cut(endpoint, "://")
		if !found {
			scheme, host = "http", endpoint
			if e.SSL != (EtcdSSL{}) {
				scheme = "https"
			}
		}
		u, err := url.Parse(scheme + "://" + host)
		if err == nil {
			_, _, err = net.SplitHostPort(u.Host)
		}
		switch {
		case err != nil || strings.Trim(u.Path, "/") != "" || u.User != nil || u.RawQuery != "":
			return nil, nil, fmt.Errorf("store: etcd endpoint %q: want http://host:port, https://host:port or host:port", redact(endpoint))
		case scheme == "https":
			secure++
		case scheme == "http":
			plain++
		default:
			return nil, nil, fmt.Errorf("store: etcd endpoint %q: got scheme %q, want http or https", redact(endpoint), scheme)
		}
		endpoints = append(endpoints, scheme+"://"+u.Host)
	}
	switch {
	case secure > 0 && plain > 0:
		return nil, nil, errors.New("store: etcd: some endpoints are http and some https: make them all https")
	case plain > 0 && e.SSL != (EtcdSSL{}):
		return nil, nil, errors.New("store: etcd: storage.config.ssl is set and the endpoints are http: make them https, or leave ssl out")
	case plain > 0:
		return endpoints, nil, nil
	}
	config, err := e.SSL.config()
	return endpoints, config, err
}

// dialOptions are what etcd's client leaves out.
func (e EtcdOptions) dialOptions(c *tls.Config) []grpc.DialOption {
	again := backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second}
	o := []grpc.DialOption{
		// By itself it tries again after up to two minutes.
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: again, MinConnectTimeout: etcdTimeout}),
		// By itself it waits for a connection as long as it may and then says that it has waited, but not for what.
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return invoke(ctx, method, req, reply, cc, append(opts, grpc.WaitForReady(false))...)
		}),
	}
	if c != nil && c.ServerName != "" {
		o = append(o, grpc.WithTransportCredentials(namedCredentials{credentials.NewTLS(c), c.ServerName}))
	}
	return o
}

// authenticateOver has a user authenticate over a connection without a token. etcd's client sends the token that it has along, and etcd
// refuses one that it does not know any more (after a restart, or five minutes), whereupon the client would authenticate in order to
// authenticate, and so on.
func authenticateOver(anonymous *grpc.ClientConn) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		if method == etcdserverpb.Auth_Authenticate_FullMethodName {
			cc = anonymous
		}
		return invoke(ctx, method, req, reply, cc, opts...)
	}
}

// namedCredentials expect one name of every server. etcd's client expects the endpoint's host whatever tls.Config.ServerName says.
type namedCredentials struct {
	credentials.TransportCredentials
	name string
}

func (c namedCredentials) ClientHandshake(ctx context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c.TransportCredentials.ClientHandshake(ctx, c.name, conn)
}

func (c namedCredentials) Clone() credentials.TransportCredentials {
	return namedCredentials{c.TransportCredentials.Clone(), c.name}
}

// redact hides a password that somebody put into an URL.
func redact(endpoint string) string {
	if u, err := url.Parse(endpoint); err == nil {
		return u.Redacted()
	}
	return "(not an URL)"
}

func (s EtcdSSL) config() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: s.ServerName}
	if s.CAFile != "" {
		pem, err := os.ReadFile(s.CAFile)
		if err != nil {
			return nil, fmt.Errorf("store: etcd: storage.config.ssl.caFile: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("store: etcd: storage.config.ssl.caFile %s has no PEM certificate in it", s.CAFile)
		}
	}
	if (s.CertFile == "") != (s.KeyFile == "") {
		return nil, errors.New("store: etcd: storage.config.ssl needs both certFile and keyFile, or neither of them")
	}
	if s.CertFile == "" {
		return c, nil
	}
	load := func() (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(s.CertFile, s.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("store: etcd: storage.config.ssl.certFile and keyFile: %w", err)
		}
		return &pair, nil
	}
	if _, err := load(); err != nil {
		return nil, err
	}
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	return c, nil
}

// failed returns the error of a request with what to do about it. None of them says whether something was written.
func (d *etcdDriver) failed(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("store: etcd: %s: %w", what, ctx.Err())
	}
	advice := ""
	switch is := func(targets ...error) bool {
		for _, t := range targets {
			if errors.Is(err, t) {
				return true
			}
		}
		return false
	}; {
	case is(context.DeadlineExceeded):
		advice = fmt.Sprintf("no answer within %s: see that etcd runs, has a leader and can be reached from here", d.timeout)
	case is(rpctypes.ErrAuthFailed, rpctypes.ErrUserEmpty, rpctypes.ErrUserNotFound, rpctypes.ErrInvalidAuthToken, rpctypes.ErrAuthNotEnabled):
		advice = "check storage.config.username and password, and that etcd has authentication enabled"
	case is(rpctypes.ErrPermissionDenied):
		advice = fmt.Sprintf("grant this user a role that may read and write keys with the prefix %q: etcdctl role grant-permission ROLE --prefix=true readwrite %s", d.prefix, d.prefix)
	case is(rpctypes.ErrNoSpace):
		advice = "etcd has used up its quota: compact and defragment it, raise --quota-backend-bytes, then etcdctl alarm disarm"
	case is(rpctypes.ErrRequestTooLarge):
		advice = "the record is larger than etcd takes: raise --max-request-bytes, or have the connector tell fewer groups"
	case is(rpctypes.ErrTooManyOps):
		advice = fmt.Sprintf("start etcd with --max-txn-ops=%d or more, which is its default", etcdTxnOps)
	case status.Code(err) == codes.Unavailable:
		advice = "check that etcd runs there, and storage.config.endpoints and ssl"
	default:
		return fmt.Errorf("store: etcd: %s: %w", what, err)
	}
	return fmt.Errorf("store: etcd: %s: %s: %w", what, advice, err)
}
