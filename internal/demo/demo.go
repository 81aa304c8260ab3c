// Package demo runs Gatehouse behind a real Envoy with a small sample app: everything on the loopback address,
// everything in a temporary folder, nothing left behind.
package demo

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"text/template"
	"time"

	"golang.org/x/sync/errgroup"

	"gatehouse/internal/demo/process"
)

const (
	loopback     = "127.0.0.1"
	readyTimeout = time.Minute
	attempts     = 3 // another program may take a port between our choice and Gatehouse's listen
)

// Options say how to run the demo.
type Options struct {
	Port  int       // of the public address http://localhost:Port
	Out   io.Writer // receives the text for people
	Envoy string    // path of an Envoy binary; empty: see FindEnvoy

	// Gatehouse serves the config file at path until ctx ends. It writes its log beside that file, if anywhere.
	Gatehouse func(ctx context.Context, path string) error
}

// Run starts the sample app, Gatehouse and Envoy, tells o.Out what to try once the whole chain answers, and blocks
// until ctx ends; it then returns nil. If a part fails it stops the others and says which and why.
func Run(ctx context.Context, o Options) error {
	if o.Port < 1 || o.Port > 65535 {
		return fmt.Errorf("demo port %d: want 1 to 65535 (GATEHOUSE_DEMO_PORT sets it)", o.Port)
	}
	envoy, err := FindEnvoy(ctx, o.Envoy, toolFolders()...)
	if err != nil {
		return err
	}
	if err := checkFree(ctx, o.Port); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "gatehouse-demo-")
	if err != nil {
		return fmt.Errorf("demo folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	for range attempts {
		if err = runOnce(ctx, o, envoy, dir); !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	return err
}

// toolFolders are where `make tools` may have put Envoy: below the working folder and beside bin/gatehouse.
func toolFolders() []string {
	folders := []string{"."}
	if exe, err := os.Executable(); err == nil {
		folders = append(folders, filepath.Dir(filepath.Dir(exe)))
	}
	return folders
}

func checkFree(ctx context.Context, port int) error {
	l, err := listen(ctx, port)
	if errors.Is(err, syscall.EADDRINUSE) {
		// Not wrapped: this clash is the user's to solve, another try would not help.
		return fmt.Errorf("port %d is taken by another program: stop it, or choose another port with GATEHOUSE_DEMO_PORT=%d", port, port%65535+1)
	}
	if err != nil {
		return fmt.Errorf("demo port: %w", err)
	}
	return l.Close()
}

func listen(ctx context.Context, port int) (net.Listener, error) {
	var c net.ListenConfig
	return c.Listen(ctx, "tcp", net.JoinHostPort(loopback, strconv.Itoa(port)))
}

// freeAddrs returns n different addresses on which nobody listens now.
func freeAddrs(ctx context.Context, n int) ([]string, error) {
	addrs := make([]string, 0, n)
	for range n {
		l, err := listen(ctx, 0)
		if err != nil {
			return nil, fmt.Errorf("free port: %w", err)
		}
		defer func() { _ = l.Close() }() // only after the last is chosen, so that all differ
		addrs = append(addrs, l.Addr().String())
	}
	return addrs, nil
}

func runOnce(ctx context.Context, o Options, envoy, dir string) error {
	started := time.Now()
	app, err := listen(ctx, 0)
	if err != nil {
		return fmt.Errorf("sample app: %w", err)
	}
	f, err := writeFiles(ctx, dir, o.Port, app.Addr().String())
	if err != nil {
		return errors.Join(err, app.Close())
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return serveApp(gctx, app) })
	g.Go(func() error { return serveGatehouse(gctx, o, f.gatehouse) })
	g.Go(func() error {
		return runEnvoy(gctx, process.Spec{Path: envoy, Args: EnvoyArgs(f.envoy), Dir: dir, Log: filepath.Join(dir, "envoy.log")})
	})
	g.Go(func() error {
		if err := awaitReady(gctx, o.Port); err != nil || gctx.Err() != nil {
			return err
		}
		return tell(o.Out, o.Port, f.gatehouse, time.Since(started))
	})
	return g.Wait()
}

func serveApp(ctx context.Context, l net.Listener) error {
	s := &http.Server{Handler: SampleApp(), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("sample app: %w", err)
	}
	return nil
}

func serveGatehouse(ctx context.Context, o Options, config string) error {
	err := o.Gatehouse(ctx, config)
	switch {
	case ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)):
		return nil
	case err == nil:
		return errors.New("gatehouse ended by itself")
	}
	return fmt.Errorf("gatehouse: %w", err)
}

func runEnvoy(ctx context.Context, s process.Spec) error {
	p, err := process.Start(ctx, s)
	if err != nil {
		return err
	}
	select {
	case <-p.Done():
		if ctx.Err() == nil {
			return p.Err()
		}
		return nil
	case <-ctx.Done():
		return p.Stop()
	}
}

// awaitReady returns when an app page and the issuer both answer through Envoy and the check; or when ctx ends,
// with nil, since then the user has ended the demo or another part has failed and says so.
func awaitReady(ctx context.Context, port int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, errNotReady)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, net.JoinHostPort(loopback, strconv.Itoa(port)))
	}}}
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for _, path := range []string{"/public/headers", "/dex/.well-known/openid-configuration"} {
		for {
			last := get(ctx, client, baseURL(port)+path)
			if last == nil {
				break
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				if errors.Is(context.Cause(ctx), errNotReady) {
					return fmt.Errorf("%w within %s: %w", errNotReady, readyTimeout, last)
				}
				return nil
			}
		}
	}
	return nil
}

var errNotReady = errors.New("the demo was not ready")

func get(ctx context.Context, c *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	res, err := c.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: got status %d, want 200", url, res.StatusCode)
	}
	return nil
}

func baseURL(port int) string { return "http://localhost:" + strconv.Itoa(port) }

//go:embed welcome.txt.tmpl
var welcomeTemplate string

func tell(out io.Writer, port int, config string, took time.Duration) error {
	t, err := template.New("welcome").Parse(welcomeTemplate)
	if err != nil {
		return fmt.Errorf("welcome text: %w", err)
	}
	var b bytes.Buffer
	err = t.Execute(&b, map[string]any{
		"URL": baseURL(port), "Took": took.Round(100 * time.Millisecond), "Config": config, "Folder": filepath.Dir(config), "Command": os.Args[0],
	})
	if err != nil {
		return fmt.Errorf("welcome text: %w", err)
	}
	_, err = out.Write(b.Bytes())
	return err
}
