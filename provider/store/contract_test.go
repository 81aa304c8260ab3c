package store_test

import (
	"testing"

	"gatehouse/provider/store"
	"gatehouse/provider/store/storetest"
)

func TestDrivers(t *testing.T) {
	for name, test := range map[string]func(*testing.T, store.Driver){
		"writes all or nothing":                      storetest.WritesAllOrNothing,
		"never uses a version twice":                 storetest.NeverUsesAVersionTwice,
		"a deleted record is gone":                   storetest.ADeletedRecordIsGone,
		"scans by owner and allows writes meanwhile": storetest.ScansByOwnerAndAllowsWritesMeanwhile,
		"keeps the log in order":                     storetest.KeepsTheLogInOrder,
		"trims the oldest":                           storetest.TrimsTheOldest,
	} {
		t.Run(name, func(t *testing.T) { store.OnDrivers(t, test) })
	}
}

func TestStores(t *testing.T) {
	for name, test := range storetest.OnAStore() {
		t.Run(name, func(t *testing.T) { store.OnBoth(t, test) })
	}
}

func TestConformance(t *testing.T) {
	for name, open := range store.Stores() {
		t.Run(name, func(t *testing.T) { storetest.Conformance(t, open) })
	}
}

func TestFollowTellsTheChangesOfOthersOnce(t *testing.T) {
	store.TwoProcesses(t, storetest.FollowOptions(), storetest.FollowTellsTheChangesOfOthersOnce)
}
