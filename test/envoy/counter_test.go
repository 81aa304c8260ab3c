package envoy

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// A counter is a testing.TB that keeps failures in place of failing the test.
type counter struct {
	testing.TB
	mu       sync.Mutex
	failures []string
	gaveUp   bool // in the middle
}

// run runs f until it returns or gives up.
func (c *counter) run(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	<-done
}

func (c *counter) fail(text string) {
	if len(text) > 300 {
		text = strings.ToValidUTF8(text[:300], "") + "…"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failures = append(c.failures, text)
}

func (c *counter) Helper()                           {}
func (c *counter) Fail()                             { c.fail("failed") }
func (c *counter) Log(...any)                        {}
func (c *counter) Logf(string, ...any)               {}
func (c *counter) Error(args ...any)                 { c.fail(fmt.Sprint(args...)) }
func (c *counter) Errorf(format string, args ...any) { c.fail(fmt.Sprintf(format, args...)) }
func (c *counter) Fatal(args ...any)                 { c.Error(args...); c.giveUp() }
func (c *counter) Fatalf(format string, args ...any) { c.Errorf(format, args...); c.giveUp() }
func (c *counter) FailNow()                          { c.Fail(); c.giveUp() }

func (c *counter) giveUp() {
	c.gaveUp = true
	runtime.Goexit()
}
