package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// checkMethod is the one method of envoy.service.auth.v3.Authorization.
const checkMethod = "/envoy.service.auth.v3.Authorization/Check"

// stall is how long a run may hang beyond its time.
const stall = 30 * time.Second

// A load is one way to drive some servers.
type load struct {
	name     string
	servers  []*server // the first is the yardstick
	parallel int
	envoy    bool // through Envoy, else directly
}

// A caller sends a request with a cookie, waits for the answer and returns an error unless it lets the request in. It
// belongs to one goroutine.
type caller func(ctx context.Context, cookie string) error

// callers returns one caller for each goroutine. cookies are those that they will be called with.
func (l load) callers(ctx context.Context, s *server, cookies []string) (list []caller, closing func(), err error) {
	if !l.envoy && !s.plain {
		t, err := newBlank(cookies)
		for range l.parallel {
			list = append(list, callGRPC(s.conn, t))
		}
		return list, func() {}, err
	}
	address, head, want := s.address, requestHead("/oauth2/auth"), http.StatusAccepted
	if l.envoy {
		address, head, want = s.origin, requestHead(path), http.StatusOK
	}
	var conns []net.Conn
	closing = func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}
	for range l.parallel {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err != nil {
			closing()
			return nil, nil, err
		}
		conns = append(conns, c)
		list = append(list, callHTTP(c, head, want))
	}
	return list, closing, nil
}

// callGRPC calls over a shared connection, with messages that grpc-go neither marshals nor unmarshals.
func callGRPC(conn *grpc.ClientConn, t blank) caller {
	request := t.buffer()
	options := []grpc.CallOption{grpc.ForceCodecV2(rawCodec{}), grpc.StaticMethod()}
	return func(ctx context.Context, cookie string) error {
		t.put(request, cookie)
		var answer []byte
		if err := conn.Invoke(ctx, checkMethod, request, &answer, options...); err != nil {
			return err
		}
		if !allows(answer) {
			return fmt.Errorf("got %q, want a CheckResponse that allows", answer)
		}
		return nil
	}
}

// A rawCodec passes messages on as they are.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("got a %T, want bytes", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("got a %T, want a pointer to bytes", v)
	}
	*b = data.Materialize()
	return nil
}

// allows reports whether a marshalled CheckResponse has an ok_response and no denied_response.
func allows(b []byte) bool {
	const denied, ok = 2, 3 // field numbers
	found := false
	for len(b) > 0 {
		number, _, n := protowire.ConsumeField(b)
		if n < 0 || number == denied {
			return false
		}
		found = found || number == ok
		b = b[n:]
	}
	return found
}

// callHTTP calls over a keep-alive connection of its own.
func callHTTP(c net.Conn, head []byte, want int) caller {
	r, request := bufio.NewReader(c), slices.Clone(head)
	return func(ctx context.Context, cookie string) error {
		request = append(append(request[:len(head)], cookie...), "\r\n\r\n"...)
		if _, err := c.Write(request); err != nil {
			return err
		}
		if d, ok := ctx.Deadline(); ok {
			if err := c.SetReadDeadline(d); err != nil {
				return err
			}
		}
		status, err := readAnswer(r)
		if err == nil && status != want {
			err = fmt.Errorf("got status %d, want %d", status, want)
		}
		return err
	}
}

// readAnswer reads an HTTP/1.1 response with a content-length and returns its status.
func readAnswer(r *bufio.Reader) (status int, err error) {
	length := -1
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		switch {
		case first && len(line) >= 12:
			status, err = strconv.Atoi(string(line[9:12]))
		case len(name) == len("content-length") && bytes.EqualFold(name, []byte("content-length")):
			length, err = strconv.Atoi(string(bytes.TrimSpace(value)))
		}
		if err != nil {
			return 0, err
		}
	}
	if length < 0 {
		return 0, fmt.Errorf("got a response of status %d without content-length", status)
	}
	_, err = r.Discard(length)
	return status, err
}

// A sample is what one run of one server cost.
type sample struct {
	checks   int
	took     time.Duration
	cpu      time.Duration // of the server
	p50, p99 time.Duration
}

// perCheck returns microseconds.
func (s sample) perCheck() float64 { return float64(s.cpu.Nanoseconds()) / float64(s.checks) / 1e3 }

// drive runs a load on a server, first unmeasured for warmUp, then for d.
func (l load) drive(ctx context.Context, s *server, cookies []string, warmUp, d time.Duration) (sample, error) {
	ctx, cancel := context.WithTimeout(ctx, warmUp+d+stall)
	defer cancel()
	list, closing, err := l.callers(ctx, s, cookies)
	if err != nil {
		return sample{}, err
	}
	defer closing()
	if _, err := repeat(ctx, list, cookies, warmUp); err != nil {
		return sample{}, err
	}
	before, err := cpuTime(s.process.Pid())
	if err != nil {
		return sample{}, err
	}
	begin := time.Now()
	took, err := repeat(ctx, list, cookies, d)
	if err != nil {
		return sample{}, err
	}
	elapsed := time.Since(begin)
	after, err := cpuTime(s.process.Pid())
	if err != nil {
		return sample{}, err
	}
	slices.Sort(took)
	n := len(took)
	return sample{checks: n, took: elapsed, cpu: after - before, p50: took[n/2], p99: took[n*99/100]}, nil
}

// repeat calls from all callers at once, each with cookies in an order of its own, at least once each and until d has passed. It
// returns how long each call took.
func repeat(ctx context.Context, list []caller, cookies []string, d time.Duration) ([]time.Duration, error) {
	var wg sync.WaitGroup
	took, errs := make([][]time.Duration, len(list)), make([]error, len(list))
	end := time.Now().Add(d)
	for worker, call := range list {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
			all := make([]time.Duration, 0, 1<<14)
			for now := time.Now(); len(all) == 0 || now.Before(end); {
				if errs[worker] = call(ctx, cookies[random.IntN(len(cookies))]); errs[worker] != nil {
					return
				}
				done := time.Now()
				all = append(all, done.Sub(now))
				now = done
			}
			took[worker] = all
		})
	}
	wg.Wait()
	return slices.Concat(took...), errors.Join(errs...)
}

// once sends every cookie once, so that a server that remembers sessions knows them.
func (l load) once(ctx context.Context, s *server, cookies []string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*startLimit)
	defer cancel()
	list, closing, err := l.callers(ctx, s, cookies)
	if err != nil {
		return err
	}
	defer closing()
	var wg sync.WaitGroup
	errs := make([]error, len(list))
	for worker, call := range list {
		wg.Go(func() {
			for i := worker; i < len(cookies) && errs[worker] == nil; i += len(list) {
				errs[worker] = call(ctx, cookies[i])
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// fetch gets a URL and throws the body away.
func fetch(ctx context.Context, client *http.Client, url string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := client.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: got %s, want 200", url, resp.Status)
	}
	return nil
}
