package store

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"go.yaml.in/yaml/v3"
)

const (
	// kubeAccount is where a pod finds its token, its CA and its namespace ("Accessing the Kubernetes API from a Pod").
	kubeAccount = "/var/run/secrets/kubernetes.io/serviceaccount"
	// kubeTokenAge is how long a token from a file is used: the kubelet writes a new one long before the old one ends.
	kubeTokenAge = time.Minute
	// kubeMaxFile bounds a kubeconfig, a token and a certificate in bytes.
	kubeMaxFile = 1 << 20
)

// KubernetesConfig is storage.config of storage type kubernetes. Exactly one of InCluster and KubeConfigFile is set.
type KubernetesConfig struct {
	InCluster      bool   // the service account of the pod
	KubeConfigFile string // its current context
	Namespace      string // "": that of the pod or of the context

	account string              // instead of kubeAccount, in tests
	getenv  func(string) string // instead of os.Getenv, in tests
}

// client returns a client, and where it calls as text for errors.
func (c KubernetesConfig) client() (_ *kubeClient, where string, err error) {
	var t kubeTarget
	switch {
	case c.InCluster == (c.KubeConfigFile != ""):
		return nil, "", errors.New("set either inCluster: true or kubeConfigFile in storage.config")
	case c.InCluster:
		t, err = c.pod()
	default:
		t, err = kubeConfigTarget(c.KubeConfigFile)
	}
	if err != nil {
		return nil, "", err
	}
	if c.Namespace != "" {
		t.namespace = c.Namespace
	}
	if !isDNSLabel(t.namespace) {
		return nil, "", fmt.Errorf("namespace %q is none: set namespace in storage.config", t.namespace)
	}
	base, err := url.Parse(t.server)
	if err != nil || base.Scheme != "https" || base.Host == "" || base.User != nil || base.RawQuery != "" {
		return nil, "", fmt.Errorf("server %q is no https URL of an API server", t.server)
	}
	client := &kubeClient{
		collection: base.JoinPath("apis", kubeGroup, "v1", "namespaces", t.namespace, kubeResource),
		http:       &http.Client{Transport: t.transport(), CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		token:      t.token,
	}
	return client, fmt.Sprintf("namespace %s at %s", t.namespace, base.Host), nil
}

// isDNSLabel reports whether s may name a namespace (RFC 1123 label).
func isDNSLabel(s string) bool {
	return s != "" && len(s) <= 63 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == "" && s[0] != '-' && s[len(s)-1] != '-'
}

// A kubeTarget is an API server and who we are to it.
type kubeTarget struct {
	server, namespace string
	tls               *tls.Config
	token             func(fresh bool) (string, error) // nil: the certificate in tls
}

// transport returns a transport of its own: no proxy from the environment gets the token. A connection that is dead is noticed by pings (HTTP/2).
func (t kubeTarget) transport() *http.Transport {
	return &http.Transport{
		TLSClientConfig:     t.tls,
		ForceAttemptHTTP2:   true,
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout: 5 * time.Second,
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     90 * time.Second,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second},
	}
}

// pod returns what a pod is told.
func (c KubernetesConfig) pod() (t kubeTarget, err error) {
	account, getenv := c.account, c.getenv
	if account == "" {
		account = kubeAccount
	}
	if getenv == nil {
		getenv = os.Getenv
	}
	host, port := getenv("KUBERNETES_SERVICE_HOST"), getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return t, errors.New("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set, as they are in a pod: outside of one use kubeConfigFile")
	}
	ca, err := readSmall(filepath.Join(account, "ca.crt"))
	if err != nil {
		return t, fmt.Errorf("the pod's service account: %w", err)
	}
	if t.tls, err = kubeTLS(ca, ""); err != nil {
		return t, fmt.Errorf("%s: %w", filepath.Join(account, "ca.crt"), err)
	}
	t.server = "https://" + net.JoinHostPort(host, port)
	t.token = tokenFile(filepath.Join(account, "token"))
	if _, err := t.token(false); err != nil {
		return t, fmt.Errorf("%w: does the pod have automountServiceAccountToken: false?", err)
	}
	namespace, err := readSmall(filepath.Join(account, "namespace"))
	if err != nil && c.Namespace == "" {
		return t, fmt.Errorf("the pod's namespace: %w", err)
	}
	t.namespace = strings.TrimSpace(string(namespace))
	return t, nil
}

// kubeTLS returns the TLS settings for a server whose certificate a CA has signed, and no other.
func kubeTLS(ca []byte, serverName string) (*tls.Config, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, errors.New("there is no CA certificate in it (PEM)")
	}
	return &tls.Config{RootCAs: pool, ServerName: serverName, MinVersion: tls.VersionTLS12}, nil
}

// readSmall reads a file that must not be large.
func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, kubeMaxFile+1))
	if err == nil && len(b) > kubeMaxFile {
		err = fmt.Errorf("%s is larger than %d bytes", path, kubeMaxFile)
	}
	return b, err
}

// tokenFile returns what reads a token, at most every kubeTokenAge unless a fresh one is wanted.
func tokenFile(path string) func(fresh bool) (string, error) {
	var mu sync.Mutex
	var token string
	var read time.Time
	return func(fresh bool) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		if !fresh && token != "" && time.Since(read) < kubeTokenAge {
			return token, nil
		}
		b, err := readSmall(path)
		if err != nil {
			return "", fmt.Errorf("token: %w", err)
		}
		now := strings.TrimSpace(string(b))
		if !isToken(now) {
			return "", fmt.Errorf("token: %s does not hold one", path)
		}
		token, read = now, time.Now()
		return token, nil
	}
}

// isToken reports whether s can stand in a header as a bearer token (RFC 6750, section 2.1).
func isToken(s string) bool {
	return s != "" && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/=") == ""
}

// A kubeConfig is a kubeconfig file (kubectl's, "v1 Config"), with all of its fields, also those that we refuse.
type kubeConfig struct {
	APIVersion     string                     `yaml:"apiVersion"`
	Kind           string                     `yaml:"kind"`
	Preferences    any                        `yaml:"preferences"`
	Extensions     any                        `yaml:"extensions"`
	CurrentContext string                     `yaml:"current-context"`
	Clusters       []kubeNamed[kubeCluster]   `yaml:"clusters"`
	Users          []kubeNamed[kubeUser]      `yaml:"users"`
	Contexts       []kubeNamed[kubeContextOf] `yaml:"contexts"`
}

// A kubeNamed is an entry of one of the three lists.
type kubeNamed[T any] struct {
	Name    string `yaml:"name"`
	Cluster *T     `yaml:"cluster,omitempty"`
	User    *T     `yaml:"user,omitempty"`
	Context *T     `yaml:"context,omitempty"`
}

type kubeCluster struct {
	Server             string `yaml:"server"`
	TLSServerName      string `yaml:"tls-server-name"`
	Insecure           bool   `yaml:"insecure-skip-tls-verify"`
	CA                 string `yaml:"certificate-authority"`
	CAData             string `yaml:"certificate-authority-data"`
	ProxyURL           string `yaml:"proxy-url"`
	DisableCompression bool   `yaml:"disable-compression"`
	Extensions         any    `yaml:"extensions"`
}

type kubeUser struct {
	Cert         string `yaml:"client-certificate"`
	CertData     string `yaml:"client-certificate-data"`
	Key          string `yaml:"client-key"`
	KeyData      string `yaml:"client-key-data"`
	Token        string `yaml:"token"`
	TokenFile    string `yaml:"tokenFile"`
	As           string `yaml:"as"`
	AsUID        string `yaml:"as-uid"`
	AsGroups     any    `yaml:"as-groups"`
	AsUserExtra  any    `yaml:"as-user-extra"`
	Username     string `yaml:"username"`
	Password     string `yaml:"password"`
	AuthProvider any    `yaml:"auth-provider"`
	Exec         any    `yaml:"exec"`
	Extensions   any    `yaml:"extensions"`
}

type kubeContextOf struct {
	Cluster    string `yaml:"cluster"`
	User       string `yaml:"user"`
	Namespace  string `yaml:"namespace"`
	Extensions any    `yaml:"extensions"`
}

// kubeConfigTarget reads the current context of a kubeconfig.
func kubeConfigTarget(path string) (t kubeTarget, err error) {
	b, err := readSmall(path)
	if err != nil {
		return t, fmt.Errorf("kubeConfigFile: %w", err)
	}
	var c kubeConfig
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(&c); err != nil {
		return t, fmt.Errorf("kubeConfigFile %s: %w", path, err)
	}
	if t, err = c.target(filepath.Dir(path)); err != nil {
		return t, fmt.Errorf("kubeConfigFile %s: %w", path, err)
	}
	return t, nil
}

// target returns what the current context says. Names of files are relative to dir, as they are to kubectl.
func (c kubeConfig) target(dir string) (t kubeTarget, err error) {
	var context *kubeContextOf
	var cluster *kubeCluster
	var user *kubeUser
	for _, e := range c.Contexts {
		if e.Name == c.CurrentContext {
			context = e.Context
		}
	}
	if context == nil {
		return t, fmt.Errorf("current-context %q is not among the contexts: kubectl config use-context NAME", c.CurrentContext)
	}
	for _, e := range c.Clusters {
		if e.Name == context.Cluster {
			cluster = e.Cluster
		}
	}
	for _, e := range c.Users {
		if e.Name == context.User {
			user = e.User
		}
	}
	if cluster == nil || user == nil {
		return t, fmt.Errorf("context %q: its cluster %q or its user %q is not in the file", c.CurrentContext, context.Cluster, context.User)
	}
	t = kubeTarget{server: cluster.Server, namespace: context.Namespace}
	if t.namespace == "" {
		t.namespace = "default"
	}
	if err := errors.Join(cluster.check(), user.check()); err != nil {
		return t, err
	}
	ca, err := fileOrData(dir, cluster.CA, cluster.CAData)
	if err == nil {
		t.tls, err = kubeTLS(ca, cluster.TLSServerName)
	}
	if err != nil {
		return t, fmt.Errorf("certificate-authority: %w", err)
	}
	return t, user.apply(dir, &t)
}

func (c *kubeCluster) check() error {
	switch {
	case c.Insecure:
		return errors.New("insecure-skip-tls-verify would give our token to whoever answers: give certificate-authority")
	case c.ProxyURL != "":
		return errors.New("proxy-url is not supported: give a server that can be reached directly")
	}
	return nil
}

func (u *kubeUser) check() error {
	switch {
	case u.Exec != nil || u.AuthProvider != nil:
		return errors.New("exec and auth-provider run a program for each token, which we do not: use the token of a service account " +
			"(kubectl create token NAME, or a Secret of type kubernetes.io/service-account-token), as token or tokenFile, or a client certificate")
	case u.Username != "" || u.Password != "":
		return errors.New("username and password are gone from Kubernetes: use token or tokenFile")
	case u.As != "" || u.AsUID != "" || u.AsGroups != nil || u.AsUserExtra != nil:
		return errors.New("impersonation (as) is not supported: give the rights to the user itself")
	}
	return nil
}

// apply sets how the user proves who it is.
func (u *kubeUser) apply(dir string, t *kubeTarget) error {
	if u.Cert != "" || u.CertData != "" {
		cert, err := fileOrData(dir, u.Cert, u.CertData)
		if err != nil {
			return fmt.Errorf("client-certificate: %w", err)
		}
		key, err := fileOrData(dir, u.Key, u.KeyData)
		if err != nil {
			return fmt.Errorf("client-key: %w", err)
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return fmt.Errorf("client-certificate: %w", err)
		}
		t.tls.Certificates = []tls.Certificate{pair}
	}
	switch {
	case u.TokenFile != "": // it wins over token, as in kubectl
		t.token = tokenFile(inDir(dir, u.TokenFile))
		_, err := t.token(false)
		return err
	case u.Token != "":
		if !isToken(u.Token) {
			return errors.New("token: it is none")
		}
		t.token = func(bool) (string, error) { return u.Token, nil }
	case t.tls.Certificates == nil:
		return errors.New("the user has neither token, tokenFile nor client-certificate")
	}
	return nil
}

func inDir(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// fileOrData returns base64 data, which wins, or a file's content, as in kubectl.
func fileOrData(dir, path, data string) ([]byte, error) {
	switch {
	case data != "":
		return base64.StdEncoding.DecodeString(data)
	case path != "":
		return readSmall(inDir(dir, path))
	}
	return nil, errors.New("it is missing")
}
