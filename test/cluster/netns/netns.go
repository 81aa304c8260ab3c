// Package netns runs a test program in a network of its own, where it may take any port and address and nothing leaves the
// machine.
package netns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inside is the variable by which the second process knows that it is one.
const inside = "GATEHOUSE_TEST_NETNS"

// UserNamespace is set in the environment where the tests are root of a user namespace only: there is no other user there.
const UserNamespace = "GATEHOUSE_TEST_USERNS"

// Main runs the tests of m in a second process of the same program, in new network, process and mount namespaces, and
// returns the exit code for os.Exit. When that process ends so does everything that it started, and its temporary files go:
// an interrupted run, too, leaves nothing behind. Its only interface is loopback, on which 127.0.0.0/8 and 10.0.0.0/8 are this
// machine: the latter stands for the pods of a cluster, since an API
// server takes no loopback address for an endpoint. Without root it takes a user namespace (user_namespaces(7)), in which the
// tests seem to be root.
func Main(m *testing.M) int {
	var err error
	code := 0
	if os.Getenv(inside) == "" {
		code, err = enter()
	} else if err = setUp(); err == nil {
		code = m.Run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "a network namespace for the tests:", err)
		return 1
	}
	return code
}

// enter runs this program again in new namespaces and returns its exit code.
func enter() (int, error) {
	// The parent-death signal comes when the thread that started the child ends: pid 1 of the namespace, and all others with it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command(os.Args[0], os.Args[1:]...) //nolint:noctx // this very program, until it ends
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	tmp, err := os.MkdirTemp("", "gh") // short, for the sockets in it
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	if err := os.Chmod(tmp, 0o711); err != nil { // #nosec G302 -- servers that run as another user come through
		return 0, err
	}
	cmd.Env = append(os.Environ(), inside+"=1", "TMPDIR="+tmp)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
	}
	if os.Geteuid() != 0 {
		cmd.Env = append(cmd.Env, UserNamespace+"=1")
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("%w (run as root, or allow user namespaces: sysctl kernel.unprivileged_userns_clone=1)", err)
	}
	// Signals of the terminal and of go test: pid 1 of a namespace gets those that it asked for only.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	go func() {
		for s := range signals {
			if s == syscall.SIGQUIT { // the test's time is over: it is to print its goroutines
				_ = cmd.Process.Signal(s)
				continue
			}
			_ = cmd.Process.Kill()
		}
	}()
	if err := cmd.Wait(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			return 0, err
		}
		return max(exit.ExitCode(), 1), nil
	}
	return 0, nil
}

// setUp gives the namespaces what a machine has: a /proc of its own processes, and loopback with its addresses.
func setUp() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mounts of its own: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("/proc: %w", err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return errors.Join(address(fd, "lo", [4]byte{127, 0, 0, 1}, [4]byte{255}), address(fd, "lo:1", [4]byte{10, 0, 0, 1}, [4]byte{255}))
}

// address gives an interface an address with a mask and brings it up. On loopback the whole of such a network is local.
func address(fd int, name string, ip, mask [4]byte) error {
	for _, set := range []struct {
		request uint
		value   [4]byte
	}{{unix.SIOCSIFADDR, ip}, {unix.SIOCSIFNETMASK, mask}} {
		r, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		if err := r.SetInet4Addr(set.value[:]); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd, set.request, r); err != nil {
			return fmt.Errorf("%s %v: %w", name, ip, err)
		}
	}
	return up(fd, name)
}

// up brings an interface up.
func up(fd int, name string) error {
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
}
