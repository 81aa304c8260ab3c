package passwords

import "syscall"

// niceness is well below that of everybody else, and not so low that a busy machine would stop sign-ins altogether.
const niceness = 10

// lowerPriority lowers that of the calling thread (setpriority(2): on Linux of a thread). Whether it could matters for speed only.
func lowerPriority() { _ = syscall.Setpriority(syscall.PRIO_PROCESS, 0, niceness) }
