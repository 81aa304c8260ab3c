package peers

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gatehouse/internal/demo/process"
)

const (
	postgresUser     = "postgres" // of the machine, since PostgreSQL refuses to run as root, and of the database
	postgresPassword = "postgres-password"
)

// PostgresOptions say how a PostgreSQL server runs.
type PostgresOptions struct {
	Durable  bool     // it writes to the disk before it confirms, as in production; else only tests of other things go faster
	Settings []string // of postgresql.conf, as name=value
}

// A PostgresServer is a running PostgreSQL server. It asks for passwords, on TLS connections and on plain ones.
type PostgresServer struct {
	Addr           string // ip:port; the same port of 127.0.0.2, a name that is not in its certificate, is the server's, too
	User, Password string // of the superuser
	CA             string // path of the certificate authority's PEM; the certificate is good for localhost and 127.0.0.1

	dir     string
	spec    process.Spec
	process *process.Process
}

// Postgres starts a PostgreSQL server on a free port, waits until it serves, and stops it when the test ends.
func Postgres(t testing.TB, o PostgresOptions) *PostgresServer {
	t.Helper()
	ca := NewCA(t, "Database CA")
	certificate, key := ca.Issue(t, "localhost", "127.0.0.1")
	s, err := StartPostgres(context.WithoutCancel(t.Context()), o, map[string][]byte{"ca.crt": ca.PEM, "tls.crt": certificate, "tls.key": key})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// StartPostgres is Postgres for a server that more than one test uses: end it by Close. Files are its ca.crt, tls.crt and tls.key; none: it
// speaks no TLS.
func StartPostgres(ctx context.Context, o PostgresOptions, files map[string][]byte) (_ *PostgresServer, err error) {
	programs, err := postgresPrograms()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "gh-")
	if err != nil {
		return nil, err
	}
	s := &PostgresServer{User: postgresUser, Password: postgresPassword, CA: filepath.Join(dir, "ca.crt"), dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if err := s.initialise(ctx, programs, files); err != nil {
		return nil, err
	}
	for range startTries {
		if s.Addr, err = freeAddr(); err != nil {
			return nil, err
		}
		_, port, _ := net.SplitHostPort(s.Addr)
		args := []string{filepath.Join(programs, "postgres"), "-D", filepath.Join(dir, "data"), "-h", "127.0.0.1,127.0.0.2", "-p", port, "-k", "", "-c", "max_connections=200"}
		if !o.Durable {
			args = append(args, "-c", "fsync=off", "-c", "full_page_writes=off")
		}
		if len(files) > 0 {
			args = append(args, "-c", "ssl=on", "-c", "ssl_cert_file="+filepath.Join(dir, "tls.crt"), "-c", "ssl_key_file="+filepath.Join(dir, "tls.key"), "-c", "ssl_ca_file="+s.CA)
		}
		for _, setting := range o.Settings {
			args = append(args, "-c", setting)
		}
		args = asPostgres(args)
		s.spec = process.Spec{Path: args[0], Args: args[1:], Dir: dir, Log: filepath.Join(dir, "log")}
		if err = s.Start(ctx); !portTaken(err) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// postgresPrograms returns the folder of the newest installed version, which Debian keeps off the PATH.
func postgresPrograms() (string, error) {
	all, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(all) == 0 {
		return "", errors.New("PostgreSQL is not installed: run `make tools`")
	}
	version := func(path string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
		return n
	}
	return filepath.Dir(slices.MaxFunc(all, func(a, b string) int { return version(a) - version(b) })), nil
}

// asPostgres returns the command that runs args as a user whom PostgreSQL accepts. The child still dies with this process: a change of the
// user would forget that, see prctl(2).
func asPostgres(args []string) []string {
	if os.Geteuid() != 0 {
		return args
	}
	if alone() { // it is somebody in a user namespace of its own, to which our files are its own
		return append([]string{"/usr/bin/unshare", "--user", "--map-user=" + postgresUser, "--map-group=" + postgresUser, "/usr/bin/setpriv", "--pdeathsig=KILL"}, args...)
	}
	return append([]string{"/usr/bin/setpriv", "--reuid=" + postgresUser, "--regid=" + postgresUser, "--init-groups", "--pdeathsig=KILL"}, args...)
}

// alone reports whether this process is root of a user namespace that has no other user (user_namespaces(7)).
func alone() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	fields := strings.Fields(string(b))
	return err == nil && len(fields) == 3 && fields[2] == "1"
}

// initialise makes the server's data and files.
func (s *PostgresServer) initialise(ctx context.Context, programs string, files map[string][]byte) error {
	files = cloneWith(files, "password", []byte(postgresPassword+"\n"))
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(s.dir, name), content, 0o600); err != nil {
			return err
		}
	}
	if err := s.giveToPostgres(); err != nil {
		return err
	}
	args := asPostgres([]string{
		filepath.Join(programs, "initdb"), "-D", filepath.Join(s.dir, "data"), "-U", postgresUser, "--pwfile=" + filepath.Join(s.dir, "password"),
		"--auth=scram-sha-256", "--no-sync", "--no-instructions", "-E", "UTF8", "--locale=C.UTF-8",
	})
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = s.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	return nil
}

func cloneWith(files map[string][]byte, name string, content []byte) map[string][]byte {
	out := map[string][]byte{name: content}
	maps.Copy(out, files)
	return out
}

// giveToPostgres makes the folder and its files those of the user that the server runs as.
func (s *PostgresServer) giveToPostgres() error {
	if os.Geteuid() != 0 || alone() {
		return nil
	}
	u, err := user.Lookup(postgresUser)
	if err != nil {
		return fmt.Errorf("PostgreSQL does not run as root: %w", err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	return filepath.Walk(s.dir, func(path string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		return os.Chown(path, uid, gid)
	})
}

// Start starts the server again after Stop or Kill, on the same port and data, and waits until it serves.
func (s *PostgresServer) Start(ctx context.Context) error {
	deadline := time.NewTimer(startTimeout)
	defer deadline.Stop()
	for {
		err := s.startOnce(ctx, deadline.C)
		// After Kill the processes of its connections take a moment to notice.
		if err == nil || !strings.Contains(err.Error(), "pre-existing shared memory block") {
			return err
		}
	}
}

func (s *PostgresServer) startOnce(ctx context.Context, deadline <-chan time.Time) error {
	p, err := process.Start(context.WithoutCancel(ctx), s.spec)
	if err != nil {
		return err
	}
	s.process = p
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-p.Done():
			return fmt.Errorf("PostgreSQL did not start; the end of its log:\n%s", p.Tail(500)) // of earlier starts there is more
		case <-deadline:
			return fmt.Errorf("PostgreSQL was not ready within %s; the end of its log:\n%s", startTimeout, p.Tail(4000))
		case <-tick.C:
		}
		if s.answers(ctx) {
			return nil
		}
	}
}

// answers reports whether the server is up: to a client that names itself it answers with the way to authenticate ('R' of its
// protocol), and with an error while it starts.
func (s *PostgresServer) answers(ctx context.Context) bool {
	d := net.Dialer{Timeout: time.Second}
	c, err := d.DialContext(ctx, "tcp", s.Addr)
	if err != nil {
		return false
	}
	defer func() { _ = c.Close() }()
	if c.SetDeadline(time.Now().Add(time.Second)) != nil {
		return false
	}
	message := "\x00\x03\x00\x00user\x00" + s.User + "\x00\x00" // version 3.0
	if _, err := c.Write(append(binary.BigEndian.AppendUint32(nil, uint32(4+len(message))), message...)); err != nil {
		return false
	}
	var kind [1]byte
	_, err = c.Read(kind[:])
	return err == nil && kind[0] == 'R'
}

// Stop ends the server in order: what it confirmed is kept, its connections are cut.
func (s *PostgresServer) Stop() error {
	if s.process == nil {
		return nil
	}
	_ = s.process.Signal(syscall.SIGCONT) // it may be paused; it may have ended
	_ = s.process.Signal(syscall.SIGINT)  // "fast": SIGTERM would wait for its clients
	select {
	case <-s.process.Done():
		return nil
	case <-time.After(startTimeout):
		return fmt.Errorf("PostgreSQL did not end within %s of SIGINT: %w", startTimeout, s.process.Kill())
	}
}

// Kill ends the server as a crash would.
func (s *PostgresServer) Kill() error { return s.process.Kill() }

// Pause makes the server and all of its connections neither answer nor hang up, as a stalled machine does; Resume ends that.
func (s *PostgresServer) Pause() error { return s.signalAll(syscall.SIGSTOP) }

// Resume ends Pause.
func (s *PostgresServer) Resume() error { return s.signalAll(syscall.SIGCONT) }

// signalAll sends sig to the server's whole process group: each of its connections is a process.
func (s *PostgresServer) signalAll(sig syscall.Signal) error {
	pid := s.process.Pid()
	errs := []error{syscall.Kill(pid, sig)} // first: a connection that came after the list of them would not stand still
	children, err := exec.CommandContext(context.Background(), "ps", "-o", "pid=", "--ppid", strconv.Itoa(pid)).Output()
	if err != nil {
		return fmt.Errorf("processes of PostgreSQL: %w", err)
	}
	for field := range strings.FieldsSeq(string(children)) {
		if child, err := strconv.Atoi(field); err == nil {
			if err := syscall.Kill(child, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// Log returns what the server has written so far.
func (s *PostgresServer) Log() string { return s.process.Log() }

// Close stops the server and removes its data.
func (s *PostgresServer) Close() error {
	err := s.Stop()
	return errors.Join(err, os.RemoveAll(s.dir))
}
