package peers

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"gatehouse/internal/demo/process"
)

// etcdProgram is Debian's, of the package etcd-server.
const etcdProgram = "/usr/bin/etcd"

// EtcdOptions say what an etcd server is to be like.
type EtcdOptions struct {
	TLS  bool     // serve TLS, to clients with a certificate of EtcdServer.CA only
	Args []string // more flags
}

// An EtcdServer is a running etcd of one member.
type EtcdServer struct {
	Addr string // ip:port
	URL  string // http:// or https:// and Addr
	Dir  string // its folder

	CA, Certificate, Key string // files for clients, with TLS

	ca      *CA
	client  http.Client
	spec    process.Spec
	process *process.Process
	test    testing.TB // that it ends with, though a subtest may start it again
}

// Etcd starts an etcd server on free ports, waits until it serves, and stops it when the test ends.
func Etcd(t testing.TB, o EtcdOptions) *EtcdServer {
	t.Helper()
	if _, err := os.Stat(etcdProgram); err != nil {
		t.Fatalf("%s is not installed: run `make tools` in %s", etcdProgram, Root(t))
	}
	s := &EtcdServer{test: t, Dir: Folder(t), client: http.Client{Timeout: time.Second}}
	// The usual second until a member that is alone elects itself is for clusters.
	args := []string{"--logger=zap", "--log-level=warn", "--heartbeat-interval=10", "--election-timeout=100", "--data-dir", filepath.Join(s.Dir, "data")}
	scheme := "http://"
	if o.TLS {
		scheme = "https://"
		args = append(args, s.issue(t)...)
	}
	for range startTries {
		s.Addr = FreeAddr(t)
		s.URL = scheme + s.Addr
		peer := "http://" + FreeAddr(t)
		s.spec = process.Spec{
			Path: etcdProgram, Dir: s.Dir, Log: filepath.Join(s.Dir, "log"),
			Args: append(append(args, "--listen-client-urls", s.URL, "--advertise-client-urls", s.URL,
				"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer), o.Args...),
		}
		err := s.start()
		if err == nil {
			return s
		}
		if !portTaken(err) {
			t.Fatal(err)
		}
	}
	t.Fatal("three free ports were taken before etcd took them")
	return nil
}

// issue makes the files of both sides and returns the server's flags.
func (s *EtcdServer) issue(t testing.TB) []string {
	t.Helper()
	s.ca = NewCA(t, "etcd CA")
	certificate, key := s.ca.Issue(t, "etcd.example.com", "127.0.0.1")
	writeFiles(t, s.Dir, map[string][]byte{"ca.crt": s.ca.PEM, "server.crt": certificate, "server.key": key})
	s.CA, s.Certificate, s.Key = filepath.Join(s.Dir, "ca.crt"), filepath.Join(s.Dir, "client.crt"), filepath.Join(s.Dir, "client.key")
	s.Renew(t)
	s.client.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.ca.Pool(), Certificates: []tls.Certificate{s.ca.Pair(t, "health")}}}
	return []string{
		"--cert-file", filepath.Join(s.Dir, "server.crt"), "--key-file", filepath.Join(s.Dir, "server.key"),
		"--client-cert-auth", "--trusted-ca-file", s.CA,
	}
}

// Renew replaces the client's certificate.
func (s *EtcdServer) Renew(t testing.TB) {
	t.Helper()
	certificate, key := s.ca.Issue(t, "client")
	writeFiles(t, s.Dir, map[string][]byte{"client.crt": certificate, "client.key": key})
}

func (s *EtcdServer) start() (err error) {
	t := s.test
	t.Helper()
	s.process, err = start(t, s.spec, func(*process.Process) bool { return s.healthy() })
	return err
}

// healthy reports whether the server has a leader and commits.
func (s *EtcdServer) healthy() bool {
	r, err := s.client.Get(s.URL + "/health") //nolint:noctx // the client has a timeout
	if err != nil {
		return false
	}
	defer r.Body.Close()
	return r.StatusCode == http.StatusOK
}

// Kill ends the server as a crash would. Its data stays.
func (s *EtcdServer) Kill(t testing.TB) {
	t.Helper()
	if err := s.process.Kill(); err != nil {
		t.Fatal(err)
	}
}

// Start starts the server again after Kill, on the same ports and data.
func (s *EtcdServer) Start(t testing.TB) {
	t.Helper()
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
}

// Signal sends sig to the running server: SIGSTOP and SIGCONT make it a host that accepts and never answers for a while.
func (s *EtcdServer) Signal(t testing.TB, sig os.Signal) {
	t.Helper()
	if err := s.process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	if sig == syscall.SIGSTOP {
		Eventually(t, startTimeout, "every thread of etcd has stopped", s.stopped)
	}
}

// stopped reports whether all threads are stopped: the first of them may take a moment to tell the others (proc_pid_stat(5), "state").
func (s *EtcdServer) stopped() bool {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", s.process.Pid()))
	if err != nil {
		return false
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if _, rest, ok := strings.Cut(string(b), ") "); err == nil && (!ok || rest[0] != 'T') {
			return false
		}
	}
	return true
}

// Log returns what the server has written so far.
func (s *EtcdServer) Log() string { return s.process.Log() }
