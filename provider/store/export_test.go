package store

import "testing"

// What the tests of package storetest run on.

func OnDrivers(t *testing.T, test func(*testing.T, Driver)) { t.Helper(); onDrivers(t, test) }

func OnBoth(t *testing.T, test func(*testing.T, *Store)) { t.Helper(); onBoth(t, test) }

func TwoProcesses(t *testing.T, o Options, test func(t *testing.T, a, b *Store)) {
	t.Helper()
	twoProcesses(t, o, test)
}

func Stores() map[string]func(testing.TB, Options) *Store { return stores() }
