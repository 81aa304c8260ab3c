package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"gatehouse/internal/demo/process"
)

// startLimit is how long a program may take until it answers, on a busy machine.
const startLimit = 60 * time.Second

// A server answers checks, in a process of its own.
type server struct {
	name    string
	process *process.Process
	address string   // where it listens for checks
	cookies []string // of live sessions, as name=value
	open    bool     // lets everybody in
	plain   bool     // asked over HTTP/1.1 and not gRPC
	conn    *grpc.ClientConn
	origin  string // address of the Envoy listener in front of it; empty: none
}

// dial connects to a gRPC server.
func (s *server) dial() (err error) {
	s.conn, err = grpc.NewClient(s.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	return err
}

func (s *server) stop() error {
	var err error
	if s.conn != nil {
		err = s.conn.Close()
	}
	if s.process != nil {
		err = errors.Join(err, s.process.Stop())
	}
	return err
}

var rssRE = regexp.MustCompile(`(?m)^VmRSS:\s+(\d+) kB$`)

// rss returns the resident memory of the process in bytes, as proc(5) has it.
func (s *server) rss() (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.process.Pid()))
	if err != nil {
		return 0, err
	}
	m := rssRE.FindSubmatch(b)
	if m == nil {
		return 0, fmt.Errorf("/proc/%d/status has no VmRSS", s.process.Pid())
	}
	n, err := strconv.Atoi(string(m[1]))
	return n << 10, err
}

// startProgram runs a program with its standard output thrown away, as the audit log of an operator who does not keep it,
// and waits until ready says that it answers.
func startProgram(ctx context.Context, folder string, env []string, ready func(context.Context) error, program string, args ...string) (*process.Process, error) {
	p, err := process.Start(context.WithoutCancel(ctx), process.Spec{
		Path: "/bin/sh", Args: append([]string{"-c", `exec "$@" >/dev/null`, "sh", program}, args...),
		Env: env, Dir: folder, Log: filepath.Join(folder, filepath.Base(program)+".log"),
	})
	if err != nil {
		return nil, err
	}
	if err := await(ctx, p, ready); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w; the end of its log:\n%s", program, err, p.Tail(2000)), p.Stop())
	}
	return p, nil
}

// await asks ready until it says yes or the process has ended.
func await(ctx context.Context, p *process.Process, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.Done():
			return fmt.Errorf("ended before it was ready: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("not ready within %s: %w", startLimit, err)
		}
	}
}

// startChild starts this program again as a server; see serve.
func startChild(ctx context.Context, folder, name string, args ...string) (*server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if folder, err = os.MkdirTemp(folder, "child-"); err != nil {
		return nil, err
	}
	var r ready
	file := filepath.Join(folder, "ready.json")
	p, err := startProgram(ctx, folder, nil, func(context.Context) error {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		return json.Unmarshal(b, &r)
	}, self, append([]string{serveCommand, "-ready", file}, args...)...)
	if err != nil {
		return nil, err
	}
	s := &server{name: name, process: p, address: r.Address, cookies: r.Cookies}
	return s, s.dial()
}

// freeAddresses returns n addresses of the loopback interface on which nobody listens. Their ports are below those that the system gives to
// connections, and to listeners that ask for any, and above those of package peers: nobody else takes them meanwhile.
func freeAddresses(ctx context.Context, n int) (list []string, err error) {
	const first, ports, tries = 30_000, 2_700, 1000
	var taken []net.Listener // until all are found: none is found twice
	defer func() {
		for _, l := range taken {
			err = errors.Join(err, l.Close())
		}
	}()
	for range tries {
		a := net.JoinHostPort("127.0.0.1", strconv.Itoa(first+rand.IntN(ports)))
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a)
		if err != nil {
			continue
		}
		taken, list = append(taken, l), append(list, a)
		if len(list) == n {
			return list, nil
		}
	}
	return nil, fmt.Errorf("no %d free ports from %d on in %d tries", n, first, tries)
}
