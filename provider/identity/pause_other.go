//go:build !linux

package identity

import "time"

// pause lets others run for a while.
func pause(d time.Duration) { <-time.After(d) }
