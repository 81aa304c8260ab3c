package main

import (
	"fmt"
	"syscall"
	"time"
	"unsafe"
)

// cpuTime returns the CPU time, user and system, that all threads of a process have used: the clock that
// clock_getcpuclockid(3) names, made as the kernel's MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED) makes it. It counts
// nanoseconds; /proc/PID/stat has ticks of 10 ms.
func cpuTime(pid int) (time.Duration, error) {
	const sched = 2
	clock := int32(^pid)<<3 | sched
	var t syscall.Timespec
	if _, _, errno := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, uintptr(clock), uintptr(unsafe.Pointer(&t)), 0); errno != 0 {
		return 0, fmt.Errorf("CPU time of process %d: %w", pid, errno)
	}
	return time.Duration(t.Nano()), nil
}
