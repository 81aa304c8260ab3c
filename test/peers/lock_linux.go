package peers

import "syscall"

// lock takes name for as long as this process lives; it fails if any process has it. It is a socket in Linux's
// abstract namespace (unix(7)): it leaves no file, and the system removes it with the process.
func lock(name string) bool {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: "@" + name}); err != nil {
		_ = syscall.Close(fd)
		return false
	}
	return true
}
