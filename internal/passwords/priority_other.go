//go:build !linux

package passwords

// lowerPriority does nothing here.
func lowerPriority() {}
