package process_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"gatehouse/internal/demo/process"
)

func start(t *testing.T, script string) *process.Process {
	t.Helper()
	p, err := process.Start(t.Context(), process.Spec{Path: shell(t), Args: []string{"-c", script}, Log: filepath.Join(t.TempDir(), "log")})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func shell(t *testing.T) string {
	t.Helper()
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	return sh
}

func waitForLog(t *testing.T, p *process.Process, want string) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for !strings.Contains(p.Log(), want) {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("log %q: want %q", p.Log(), want)
		}
	}
}

func TestStopEndsTheChildAndMayBeCalledTwice(t *testing.T) {
	p := start(t, "echo up; exec sleep 600")
	waitForLog(t, p, "up")
	for range 2 {
		if err := p.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Kill(p.Pid(), 0); err != syscall.ESRCH {
		t.Errorf("signal to the stopped child: got %v, want %v", err, syscall.ESRCH)
	}
}

func TestKillEndsAChildThatIgnoresSIGTERM(t *testing.T) {
	p := start(t, "trap '' TERM; echo up; exec sleep 600")
	waitForLog(t, p, "up")
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Done():
	default:
		t.Error("Kill returned before the child had ended")
	}
}

func TestErrSaysHowItEndedWithTheEndOfTheLog(t *testing.T) {
	p := start(t, "echo first; echo 'bad listener' >&2; exit 3")
	<-p.Done()
	got := p.Err().Error()
	for _, want := range []string{"sh ended: exit status 3", "bad listener"} {
		if !strings.Contains(got, want) {
			t.Errorf("error %q: want %q in it", got, want)
		}
	}
}

func TestTailKeepsWholeLines(t *testing.T) {
	p := start(t, "echo one; echo two; echo three")
	<-p.Done()
	if got, want := p.Tail(11), "two\nthree"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestStartNamesAProgramThatIsNotThere(t *testing.T) {
	_, err := process.Start(t.Context(), process.Spec{Path: "/nonexistent/envoy", Log: filepath.Join(t.TempDir(), "log")})
	if err == nil || !strings.Contains(err.Error(), "/nonexistent/envoy") {
		t.Errorf("got %v, want an error that names the program", err)
	}
}
