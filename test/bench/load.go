package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// warmUp runs before each measured run.
const warmUp = 200 * time.Millisecond

const path = "/pipeline/api/v1/runs?page=1"

// A child is a server in a process of its own.
type child struct {
	name  string
	cmd   *exec.Cmd
	stdin io.Closer
	ready
	conn *grpc.ClientConn
}

// startChild starts this program again as a server and waits until it listens.
func startChild(ctx context.Context, name, kind string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, serveCommand, kind)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &child{name: name, cmd: cmd, stdin: stdin}
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &c.ready)
	}
	if err == nil {
		c.conn, err = grpc.NewClient(c.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("server %s did not start: %w", name, err), c.stop())
	}
	return c, nil
}

// stop ends the process by ending its input.
func (c *child) stop() error {
	var err error
	if c.conn != nil {
		err = c.conn.Close()
	}
	return errors.Join(err, c.stdin.Close(), c.cmd.Wait())
}

// cpu returns the CPU time that the process has used: utime and stime of proc(5), in ticks of 10 ms, which Linux fixes
// for user space.
func (c *child) cpu() (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields, want 13 or more", c.cmd.Process.Pid, len(fields))
	}
	user, err := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err, err2)
}

// headers are those of a script in a browser.
func headers(cookie string) map[string]string {
	return map[string]string{
		"user-agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0 Safari/537.36",
		"accept":     "application/json, text/plain, */*", "accept-encoding": "gzip, deflate, br", "accept-language": "en-US,en;q=0.9",
		"cookie": "_ga=GA1.2.3.4; " + cookie, "x-forwarded-for": "10.1.2.3", "x-forwarded-proto": "https",
		"x-request-id": "3f6d8a10-1111-2222-3333-444455556666", "referer": "https://" + host + "/pipeline/",
		"sec-fetch-dest": "empty", "sec-fetch-mode": "cors", "sec-fetch-site": "same-origin",
	}
}

// checkRequest is what Envoy makes of such a request.
func checkRequest(cookie string) *authv3.CheckRequest {
	h := headers(cookie)
	h[":authority"], h[":path"], h[":method"], h[":scheme"] = host, path, http.MethodGet, "https"
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{
		Http: &authv3.AttributeContext_HttpRequest{
			Id: "1234567890", Method: http.MethodGet, Headers: h, Path: path, Host: host, Scheme: "https", Protocol: "HTTP/2",
		},
	}}}
}

// direct drives a server over one connection.
func direct(ctx context.Context, c *child, cookies []string, parallel int, d time.Duration) (sample, error) {
	client := authv3.NewAuthorizationClient(c.conn)
	var requests []*authv3.CheckRequest
	for _, cookie := range cookies {
		requests = append(requests, checkRequest(cookie))
	}
	return drive(ctx, c, parallel, d, func(ctx context.Context, i int) error {
		r, err := client.Check(ctx, requests[i%len(requests)])
		if err == nil && r.GetOkResponse() == nil {
			err = fmt.Errorf("refused: %v", r)
		}
		return err
	})
}

// throughEnvoy drives a server by HTTP requests to Envoy at a URL.
func throughEnvoy(ctx context.Context, c *child, origin string, cookies []string, parallel int, d time.Duration) (sample, error) {
	transport := &http.Transport{MaxIdleConnsPerHost: parallel, DisableCompression: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	return drive(ctx, c, parallel, d, func(ctx context.Context, i int) error {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, origin+path, nil)
		if err != nil {
			return err
		}
		r.Host = host
		for k, v := range headers(cookies[i%len(cookies)]) {
			r.Header.Set(k, v)
		}
		resp, err := client.Do(r)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		if resp.StatusCode != http.StatusOK {
			err = errors.Join(err, fmt.Errorf("got %s, want 200", resp.Status))
		}
		return errors.Join(err, resp.Body.Close())
	})
}

// drive calls from parallel goroutines, first unmeasured, then for d.
func drive(ctx context.Context, c *child, parallel int, d time.Duration, call func(context.Context, int) error) (sample, error) {
	if _, err := calls(ctx, parallel, warmUp, call); err != nil {
		return sample{}, err
	}
	before, err := c.cpu()
	if err != nil {
		return sample{}, err
	}
	took, err := calls(ctx, parallel, d, call)
	if err != nil {
		return sample{}, err
	}
	after, err := c.cpu()
	if err != nil {
		return sample{}, err
	}
	slices.Sort(took)
	n := len(took)
	return sample{checks: n, cpu: after - before, p50: took[n/2], p99: took[n*99/100]}, nil
}

// calls returns how long each call took.
func calls(ctx context.Context, parallel int, d time.Duration, call func(context.Context, int) error) ([]time.Duration, error) {
	var wg sync.WaitGroup
	lists, errs := make([][]time.Duration, parallel), make([]error, parallel)
	end := time.Now().Add(d)
	for worker := range parallel {
		wg.Go(func() {
			for i := worker; ; i += parallel {
				begin := time.Now()
				if begin.After(end) && len(lists[worker]) > 0 {
					return
				}
				if errs[worker] = call(ctx, i); errs[worker] != nil {
					return
				}
				lists[worker] = append(lists[worker], time.Since(begin))
			}
		})
	}
	wg.Wait()
	return slices.Concat(lists...), errors.Join(errs...)
}
