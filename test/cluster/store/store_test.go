package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/dexidp/dex/storage"

	"gatehouse/provider/store"
	"gatehouse/provider/store/storetest"
	"gatehouse/test/cluster/kube"
	"gatehouse/test/peers"
)

// limit is how long anything may take to come about: machines that run tests are busy.
const limit = time.Minute

// A cluster is an API server that knows our resource.
type cluster struct {
	*kube.Server
	namespaces atomic.Int64
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	c := &cluster{Server: kube.Start(t, peers.Folder(t), peers.NewCA(t, "store test CA"))}
	c.Kubectl(t, "", "apply", "-f", manifest(t, "crd.yaml"))
	c.Kubectl(t, "", "wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
	return c
}

func manifest(t testing.TB, name string) string {
	t.Helper()
	return filepath.Join(peers.Root(t), "deploy", "store-kubernetes", name)
}

// place makes a namespace with the shipped rights, and returns the config of a service account there.
func (c *cluster) place(t testing.TB) store.KubernetesConfig {
	t.Helper()
	name := fmt.Sprintf("store-%d", c.namespaces.Add(1))
	c.Kubectl(t, "", "create", "namespace", name)
	c.Kubectl(t, "", "-n", name, "create", "serviceaccount", "gatehouse")
	c.Kubectl(t, "", "-n", name, "apply", "-f", manifest(t, "rbac.yaml"))
	token := strings.TrimSpace(c.Kubectl(t, "", "-n", name, "create", "token", "gatehouse"))
	return store.KubernetesConfig{KubeConfigFile: c.kubeconfig(t, c.URL, name, token)}
}

func (c *cluster) driver(t testing.TB, config store.KubernetesConfig) store.Driver {
	t.Helper()
	d, err := store.OpenKubernetesDriver(t.Context(), config)
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	return d
}

func (c *cluster) store(t testing.TB, config store.KubernetesConfig, o store.Options) *store.Store {
	t.Helper()
	s, err := store.New(t.Context(), c.driver(t, config), o)
	must(t, err)
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var epoch = time.Date(2026, 8, 6, 12, 0, 0, 0, time.UTC)

func session(id string) storage.AuthSession {
	return storage.AuthSession{
		ID: id, UserID: "alice", ConnectorID: "ad", IdleExpiry: epoch.Add(time.Hour), AbsoluteExpiry: epoch.Add(24 * time.Hour),
		ClientStates: map[string]*storage.ClientAuthState{},
	}
}

func TestKubernetes(t *testing.T) {
	c := newCluster(t)
	t.Run("driver", func(t *testing.T) {
		for name, test := range map[string]func(*testing.T, store.Driver){
			"writes in sequence":                         storetest.WritesInSequence,
			"never uses a version twice":                 storetest.NeverUsesAVersionTwice,
			"a deleted record is gone":                   storetest.ADeletedRecordIsGone,
			"scans by owner and allows writes meanwhile": storetest.ScansByOwnerAndAllowsWritesMeanwhile,
			"keeps the log in order":                     storetest.KeepsTheLogInOrder,
		} {
			t.Run(name, func(t *testing.T) { test(t, c.driver(t, c.place(t))) })
		}
	})
	t.Run("store", func(t *testing.T) {
		for name, test := range storetest.OnAStore() {
			t.Run(name, func(t *testing.T) { test(t, c.store(t, c.place(t), store.Options{})) })
		}
	})
	t.Run("conformance", func(t *testing.T) {
		storetest.Conformance(t, func(t testing.TB, o store.Options) *store.Store { t.Helper(); return c.store(t, c.place(t), o) })
	})
	t.Run("two processes", func(t *testing.T) {
		where := c.place(t)
		storetest.FollowTellsTheChangesOfOthersOnce(t, c.store(t, where, storetest.FollowOptions()), c.store(t, where, storetest.FollowOptions()))
	})
	for name, test := range map[string]func(*testing.T, *cluster){
		"deleted records":      deletedRecordsAreForgotten,
		"hostile names":        hostileNames,
		"changes out of order": noChangeAppearsLate,
		"end of the log":       nothingIsSaidWhenItIsSure,
		"woken":                anotherProcessIsWokenAtOnce,
		"sweep checks":         aRecordThatIsMovedMeanwhileStays,
		"too large":            whatIsTooLargeIsRefused,
		"not set up":           whatIsMissingIsSaid,
		"rights":               theShippedRightsAreEnoughAndNoMore,
		"many expired records": collectionKeepsUp,
	} {
		t.Run(name, func(t *testing.T) { test(t, c) })
	}
	t.Run("restart of the API server", func(t *testing.T) { theAPIServerMayGoAndComeBack(t, c) }) // last: it ends other connections
}

// deletedRecordsAreForgotten: a deletion stays in the log until Trim, is no record to anybody, and gives way to a new record.
func deletedRecordsAreForgotten(t *testing.T, c *cluster) {
	ctx, where := t.Context(), c.place(t)
	now := epoch
	s := c.store(t, where, store.Options{Now: func() time.Time { return now }, Retention: time.Minute})
	must(t, s.CreateAuthSession(ctx, session("again")))
	must(t, s.CreateAuthSession(ctx, session("sid")))
	for _, id := range []string{"again", "sid"} {
		must(t, s.DeleteAuthSession(ctx, id))
		if err := s.DeleteAuthSession(ctx, id); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("deleted twice: got %v, want ErrNotFound", err)
		}
	}
	must(t, s.CreateAuthSession(ctx, session("again")))
	if err := s.CreateAuthSession(ctx, session("again")); !errors.Is(err, storage.ErrAlreadyExists) {
		t.Errorf("created twice: got %v, want ErrAlreadyExists", err)
	}
	all, err := s.ListAuthSessions(ctx)
	if err != nil || len(all) != 1 || all[0].ID != "again" {
		t.Errorf("got %+v, %v; want the one that was made again", all, err)
	}
	if err := s.UpdateAuthSession(ctx, "sid", func(v storage.AuthSession) (storage.AuthSession, error) { return v, nil }); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("update of a deleted one: got %v, want ErrNotFound", err)
	}
	for _, step := range []struct {
		after time.Duration
		want  int // objects
	}{{30 * time.Second, 2}, {2 * time.Minute, 1}} {
		now = epoch.Add(step.after)
		_, err := s.GarbageCollect(ctx, epoch.Add(-time.Hour))
		must(t, err)
		if got := c.objects(t, where); got != step.want {
			t.Errorf("after %v: %d objects, want %d", step.after, got, step.want)
		}
	}
}

// hostileNames: no text from outside gets into a name or a label.
func hostileNames(t *testing.T, c *cluster) {
	ctx, where := t.Context(), c.place(t)
	s := c.store(t, where, store.Options{})
	names := []string{"../../../secrets/x", "a/b", "?watch=1", "a,b=c", "UPPER", "upper", "%2e%2e", strings.Repeat("x", 3000), "\x00", "日本", "a\nb", "-", ".", ".."}
	for _, name := range names {
		v := session(name)
		v.UserID = name
		must(t, s.CreateAuthSession(ctx, v))
	}
	for _, name := range names {
		got, err := s.GetAuthSession(ctx, name)
		if err != nil || got.UserID != name {
			t.Errorf("%q: got the session of %q, %v", name, got.UserID, err)
		}
		of, err := s.SessionsOf(ctx, name, "ad")
		if err != nil || len(of) != 1 || of[0].ID != name {
			t.Errorf("%q: got %d sessions, %v; want its one", name, len(of), err)
		}
		must(t, s.DeleteAuthSession(ctx, name))
	}
}

// noChangeAppearsLate reads the log while others write to it, and compares with what they were told.
func noChangeAppearsLate(t *testing.T, c *cluster) {
	const workers, each = 8, 40
	ctx, where := t.Context(), c.place(t)
	d := c.driver(t, where)
	at, err := d.Head(ctx)
	must(t, err)
	written := make(chan int64, workers*each)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				id := fmt.Sprintf("%d-%d", w, i)
				seq, err := d.Write(ctx, []store.Op{{
					Verb: store.Create, Record: store.Record{Kind: "k", ID: id, Data: []byte("x")}, Changes: []store.Change{{Kind: "k", ID: id, At: epoch}},
				}})
				if err != nil {
					t.Errorf("write: %v", err)
					return
				}
				written <- seq
			}
		})
	}
	go func() { wg.Wait(); close(written) }()
	seen := map[int64]bool{}
	for len(seen) < workers*each && !t.Failed() {
		page, err := d.Changes(ctx, at, 7)
		must(t, err)
		for _, change := range page {
			if change.Seq <= at {
				t.Errorf("change %d appeared after %d", change.Seq, at)
			}
			at, seen[change.Seq] = change.Seq, true
		}
	}
	for seq := range written {
		if !seen[seq] {
			t.Errorf("write %d is not in the log", seq)
		}
	}
}

// nothingIsSaidWhenItIsSure: others write to the cluster, and the log's end is still found, by a bookmark, in the time that Follow gives it.
func nothingIsSaidWhenItIsSure(t *testing.T, c *cluster) {
	ctx, where := t.Context(), c.place(t)
	d := c.driver(t, where)
	at, err := d.Head(ctx)
	must(t, err)
	for i := range 3 {
		c.Kubectl(t, "", "annotate", "--overwrite", "namespace", "default", fmt.Sprintf("test/written=%d", i))
		short, cancel := context.WithTimeout(ctx, 10*time.Second)
		page, err := d.Changes(short, at, 10)
		cancel()
		if err != nil || len(page) != 0 {
			t.Fatalf("got %+v and %v, want nothing", page, err)
		}
	}
	seq, err := d.Write(ctx, []store.Op{{Verb: store.Create, Record: store.Record{Kind: "k", ID: "a"}, Changes: []store.Change{{Kind: "k", ID: "a", At: epoch}}}})
	must(t, err)
	page, err := d.Changes(ctx, at, 10)
	if err != nil || len(page) != 1 || page[0].Seq != seq {
		t.Errorf("got %+v and %v, want the write %d", page, err, seq)
	}
}

// anotherProcessIsWokenAtOnce: with an hour between two readings of the log only the watch can tell.
func anotherProcessIsWokenAtOnce(t *testing.T, c *cluster) {
	where := c.place(t)
	a, b := c.store(t, where, store.Options{FeedInterval: time.Hour}), c.store(t, where, store.Options{})
	told := make(chan time.Time, 100)
	defer a.Subscribe(func(store.Change) { told <- time.Now() })()
	follow(t, a)
	var delays []time.Duration
	for i := range 20 {
		must(t, b.CreateAuthSession(t.Context(), session(fmt.Sprint(i))))
		done := time.Now()
		select {
		case at := <-told:
			delays = append(delays, at.Sub(done))
		case <-time.After(limit):
			t.Fatalf("change %d was not told", i)
		}
	}
	t.Logf("told after %v", delays)
}

// follow runs Follow until the test ends.
func follow(t *testing.T, s *store.Store) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Follow(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("follow: got %v, want context.Canceled", err)
		}
	})
}

// aRecordThatIsMovedMeanwhileStays races Sweep with extensions.
func aRecordThatIsMovedMeanwhileStays(t *testing.T, c *cluster) {
	const n = 200
	ctx, where := t.Context(), c.place(t)
	s, other := c.store(t, where, store.Options{}), c.store(t, where, store.Options{})
	inParallel(t, n, func(i int) error { return s.CreateAuthSession(ctx, session(fmt.Sprint(i))) })
	extended := make([]bool, n)
	collected := make(chan error, 1)
	go func() {
		_, err := other.GarbageCollect(ctx, epoch.Add(2*time.Hour))
		collected <- err
	}()
	inParallel(t, n, func(i int) error {
		err := s.UpdateAuthSession(ctx, fmt.Sprint(i), func(v storage.AuthSession) (storage.AuthSession, error) {
			v.IdleExpiry = epoch.Add(3 * time.Hour)
			return v, nil
		})
		if errors.Is(err, storage.ErrNotFound) {
			return nil
		}
		extended[i] = err == nil
		return err
	})
	must(t, <-collected)
	stayed := 0
	for i, was := range extended {
		_, err := s.GetAuthSession(ctx, fmt.Sprint(i))
		if was {
			stayed++
		}
		if was != (err == nil) {
			t.Errorf("session %d: extended: %t, and then: %v", i, was, err)
		}
	}
	t.Logf("%d of %d were extended in time", stayed, n)
}

func inParallel(t testing.TB, n int, f func(i int) error) {
	t.Helper()
	var wg sync.WaitGroup
	errs := make([]error, n)
	slots := make(chan struct{}, 32)
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() { errs[i] = f(i); <-slots })
	}
	wg.Wait()
	must(t, errors.Join(errs...))
}

func whatIsTooLargeIsRefused(t *testing.T, c *cluster) {
	ctx := t.Context()
	d := c.driver(t, c.place(t))
	create := func(n int) error {
		_, err := d.Write(ctx, []store.Op{{Verb: store.Create, Record: store.Record{Kind: "k", ID: fmt.Sprint(n), Data: make([]byte, n)}}})
		return err
	}
	must(t, create(1<<20))
	if err := create(1<<20 + 1); err == nil || !strings.Contains(err.Error(), "1048577 bytes") {
		t.Errorf("a byte more: got %v, want an error that tells the size", err)
	}
	r, err := d.Read(ctx, "k", fmt.Sprint(1<<20))
	if err != nil || len(r.Data) != 1<<20 {
		t.Errorf("got %d bytes and %v, want the largest record", len(r.Data), err)
	}
}

// whatIsMissingIsSaid: the errors of an installation that is not finished name the file to apply.
func whatIsMissingIsSaid(t *testing.T, c *cluster) {
	good := c.place(t)
	c.Kubectl(t, "", "create", "namespace", "bare")
	c.Kubectl(t, "", "-n", "bare", "create", "serviceaccount", "gatehouse")
	token := strings.TrimSpace(c.Kubectl(t, "", "-n", "bare", "create", "token", "gatehouse"))
	elsewhere := good
	elsewhere.Namespace = "default"
	for name, tt := range map[string]struct {
		config store.KubernetesConfig
		want   string
	}{
		"no role":           {store.KubernetesConfig{KubeConfigFile: c.kubeconfig(t, c.URL, "bare", token)}, "apply deploy/store-kubernetes/rbac.yaml"},
		"another namespace": {elsewhere, "namespace default at 127.0.0.1:6443: apply deploy/store-kubernetes/rbac.yaml"},
		"a wrong token":     {store.KubernetesConfig{KubeConfigFile: c.kubeconfig(t, c.URL, "bare", "wrong")}, "check the token"},
		"nobody there":      {store.KubernetesConfig{KubeConfigFile: c.kubeconfig(t, "https://127.0.0.1:1", "bare", token)}, "connection refused"},
	} {
		_, err := store.OpenKubernetes(t.Context(), tt.config, store.Options{})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
}

// theShippedRightsAreEnoughAndNoMore: that they are enough all other tests show.
func theShippedRightsAreEnoughAndNoMore(t *testing.T, c *cluster) {
	where := c.place(t)
	name := c.namespace(t, where)
	as := "--as=system:serviceaccount:" + name + ":gatehouse"
	got := c.Kubectl(t, "", "auth", "can-i", "--list", "-n", name, as, "--no-headers")
	for line := range strings.Lines(got) {
		resource, _, _ := strings.Cut(line, " ")
		if strings.Contains(resource, ".") && !strings.HasPrefix(resource, "self") && resource != "records.gatehouse.internal" {
			t.Errorf("it may do something with %s", strings.TrimSpace(line))
		}
		if resource == "secrets" || resource == "*.*" {
			t.Errorf("it may do something with %s", strings.TrimSpace(line))
		}
	}
	if !strings.Contains(got, "records.gatehouse.internal") {
		t.Errorf("no rights on our records are listed:\n%s", got)
	}
	if other := c.Kubectl(t, "", "auth", "can-i", "--list", "-n", "default", as, "--no-headers"); strings.Contains(other, "records.gatehouse.internal") {
		t.Errorf("it has rights in another namespace:\n%s", other)
	}
}

// collectionKeepsUp deletes 10,000 expired records among live ones.
func collectionKeepsUp(t *testing.T, c *cluster) {
	const expired, live = 10_000, 1_000
	ctx, where := t.Context(), c.place(t)
	s := c.store(t, where, store.Options{})
	state := strings.Repeat("x", 200)
	fill := func(name string, n int, expiry time.Time) {
		inParallel(t, n, func(i int) error {
			return s.CreateAuthRequest(ctx, storage.AuthRequest{ID: fmt.Sprintf("%s %d", name, i), State: state, Expiry: expiry})
		})
	}
	start := time.Now()
	fill("old", expired, epoch.Add(-time.Second))
	fill("new", live, epoch.Add(time.Hour))
	t.Logf("%d records made in %v", expired+live, time.Since(start))
	start = time.Now()
	got, err := s.GarbageCollect(ctx, epoch)
	must(t, err)
	t.Logf("%d deleted in %v", got.AuthRequests, time.Since(start))
	if got.AuthRequests != expired {
		t.Errorf("got %d deleted, want %d", got.AuthRequests, expired)
	}
	if n := c.objects(t, where); n != live {
		t.Errorf("%d records are left, want %d", n, live)
	}
}

// theAPIServerMayGoAndComeBack: stopped, it makes no call hang; killed, it loses nothing; and a reader hears of what it missed, or that it missed something.
func theAPIServerMayGoAndComeBack(t *testing.T, c *cluster) {
	ctx, where := t.Context(), c.place(t)
	a, b := c.store(t, where, store.Options{}), c.store(t, where, store.Options{})
	told := make(chan store.Change, 1000)
	defer a.Subscribe(func(c store.Change) { told <- c })()
	follow(t, a)
	must(t, b.CreateAuthSession(ctx, session("before")))
	hears(t, told, "before")

	must(t, c.Process().Signal(syscall.SIGSTOP))
	peers.Eventually(t, limit, "every thread has stopped", func() bool { return stopped(t, c.Process().Pid()) })
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	_, err := b.GetAuthSession(short, "before")
	cancel()
	must(t, c.Process().Signal(syscall.SIGCONT))
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("call to a stopped server: got %v, want the context's end", err)
	}
	must(t, b.CreateAuthSession(ctx, session("after the stop")))
	hears(t, told, "after the stop")

	c.Kill(t)
	if _, err := b.GetAuthSession(ctx, "before"); err == nil || errors.Is(err, storage.ErrNotFound) {
		t.Errorf("call to a killed server: got %v, want an error that is no outcome", err)
	}
	c.Run(t)
	peers.Eventually(t, limit, "a write succeeds", func() bool { return b.CreateAuthSession(ctx, session("after the kill")) == nil })
	hears(t, told, "after the kill")
	for _, id := range []string{"before", "after the stop", "after the kill"} {
		if _, err := b.GetAuthSession(ctx, id); err != nil {
			t.Errorf("session %q was confirmed and is lost: %v", id, err)
		}
	}
}

// stopped reports whether all threads of a process are stopped: the first of them may take a moment to tell the others (proc(5), "stat").
func stopped(t *testing.T, pid int) bool {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(files) == 0 {
		t.Fatalf("no threads of %d, %v", pid, err)
	}
	return !slices.ContainsFunc(files, func(file string) bool {
		b, err := os.ReadFile(file)
		i := bytes.LastIndexByte(b, ')')
		return err == nil && (i < 0 || !bytes.HasPrefix(b[i:], []byte(") T")))
	})
}

// hears waits for a change, or for the one that says that anything may have changed.
func hears(t *testing.T, told <-chan store.Change, id string) {
	t.Helper()
	end := time.After(limit)
	for {
		select {
		case c := <-told:
			if c.ID == id || c.Kind == "" {
				return
			}
		case <-end:
			t.Fatalf("the change of %q was not told", id)
		}
	}
}
