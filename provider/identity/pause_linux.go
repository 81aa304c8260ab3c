package identity

import (
	"syscall"
	"time"
)

// pause sleeps in the kernel and keeps the thread: a timer of Go's would wake the goroutine anywhere, in front of checks that
// wait there, and after a millisecond at the earliest where the process is idle (the resolution of epoll_wait's timeout).
// A signal may end it early, which does no harm.
func pause(d time.Duration) {
	ts := syscall.NsecToTimespec(d.Nanoseconds())
	_ = syscall.Nanosleep(&ts, nil)
}
