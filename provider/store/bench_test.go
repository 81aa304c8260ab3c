package store

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dexidp/dex/storage"
)

func benchBoth(b *testing.B, run func(b *testing.B, s *Store)) {
	for name, open := range stores() {
		b.Run(name, func(b *testing.B) {
			s := open(b, Options{})
			if err := s.CreateAuthSession(b.Context(), newSession("sid", "alice")); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			run(b, s)
			b.StopTimer()
			must(b, s.Close())
		})
	}
}

func BenchmarkSessionGet(b *testing.B) {
	benchBoth(b, func(b *testing.B, s *Store) {
		for b.Loop() {
			if _, err := s.GetAuthSession(b.Context(), "sid"); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func touch(v storage.AuthSession) (storage.AuthSession, error) {
	v.LastActivity = v.LastActivity.Add(time.Second)
	return v, nil
}

func BenchmarkSessionUpdate(b *testing.B) {
	benchBoth(b, func(b *testing.B, s *Store) {
		for b.Loop() {
			must(b, s.UpdateAuthSession(b.Context(), "sid", touch))
		}
	})
}

func BenchmarkSessionCreate(b *testing.B) {
	benchBoth(b, func(b *testing.B, s *Store) {
		for i := 0; b.Loop(); i++ {
			must(b, s.CreateAuthSession(b.Context(), newSession(fmt.Sprint(i), "alice")))
		}
	})
}

// 64 sessions are created at a time: writes share their commits.
func BenchmarkSessionCreateParallel(b *testing.B) {
	benchBoth(b, func(b *testing.B, s *Store) {
		var n atomic.Int64
		b.SetParallelism(32)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if err := s.CreateAuthSession(b.Context(), newSession(fmt.Sprint(n.Add(1)), "alice")); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}
