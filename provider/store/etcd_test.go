package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dexidp/dex/storage"

	"gatehouse/test/peers"
)

func etcdAt(s *peers.EtcdServer) EtcdOptions {
	return EtcdOptions{Endpoints: []string{s.URL}, Namespace: "test/"}
}

// openEtcdAt opens one process's driver, and has it closed in the end.
func openEtcdAt(t testing.TB, s *peers.EtcdServer) *etcdDriver {
	t.Helper()
	d, err := openEtcd(t.Context(), etcdAt(s), quiet())
	must(t, err)
	d.timeout = etcdPatience
	t.Cleanup(func() { must(t, d.Close()) })
	return d
}

// etcdPatience is etcdTimeout for tests of other things, on a machine that does much besides.
const etcdPatience = time.Minute

func openEtcdStore(t testing.TB, e EtcdOptions, o Options) *Store {
	t.Helper()
	s, err := OpenEtcd(t.Context(), e, o)
	must(t, err)
	s.driver.Driver.(*etcdDriver).timeout = etcdPatience
	return s
}

// etcdKeys returns all keys of a driver that begin so.
func etcdKeys(t *testing.T, d *etcdDriver, prefix string) []string {
	t.Helper()
	res, err := d.client.Get(t.Context(), d.prefix+prefix, clientv3.WithPrefix())
	must(t, err)
	var keys []string
	for _, kv := range res.Kvs {
		keys = append(keys, strings.TrimPrefix(string(kv.Key), d.prefix)+" "+string(kv.Value))
	}
	return keys
}

// Processes that know nothing of each other change, sweep and trim a few records: the indexes say in the end what the records do, and the
// log has every write once.
func TestEtcdIndexesSayWhatRecordsDo(t *testing.T) {
	server := peers.Etcd(t, peers.EtcdOptions{})
	var drivers []*etcdDriver
	for range 3 {
		drivers = append(drivers, openEtcdAt(t, server))
	}
	var mu sync.Mutex
	var told []int64
	inParallel(t, 9, func(w int) error {
		d, r := drivers[w%3], rand.New(rand.NewPCG(1, uint64(w)))
		for range 60 {
			seq, err := randomWrite(t.Context(), d, r)
			if err != nil && !isOutcome(err) {
				return err
			}
			if err == nil {
				mu.Lock()
				told = append(told, seq)
				mu.Unlock()
			}
		}
		return nil
	})
	d := drivers[0]
	want := map[string]bool{}
	for r, err := range d.Scan(t.Context(), Query{Kind: "k"}) {
		must(t, err)
		if r.Owner != "" {
			want[fmt.Sprintf("o/k/%d:%s:%s ", len(r.Owner), r.Owner, r.ID)] = true
		}
		if !r.Expires.IsZero() {
			want[fmt.Sprintf("x/k/%016x/%s %s", r.Expires.UnixNano(), r.ID, r.Owner)] = true
		}
	}
	got := map[string]bool{}
	for _, key := range append(etcdKeys(t, d, "o/"), etcdKeys(t, d, "x/")...) {
		got[key] = true
	}
	if len(want) == 0 || !maps.Equal(got, want) {
		t.Errorf("the indexes have\n%v\nwant\n%v", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
	changes, err := d.Changes(t.Context(), 0, 1000)
	must(t, err)
	var logged []int64
	for _, c := range changes {
		logged = append(logged, c.Seq)
	}
	if slices.Sort(told); len(told) < 100 || !slices.Equal(logged, told) {
		t.Errorf("the log has %d writes, want the %d that were confirmed, in order", len(logged), len(told))
	}
}

// randomWrite changes one or two of a few records somehow.
func randomWrite(ctx context.Context, d *etcdDriver, r *rand.Rand) (int64, error) {
	if r.IntN(10) == 0 {
		if _, err := d.Sweep(ctx, "k", epoch.Add(time.Second), 3); err != nil {
			return 0, err
		}
	}
	var ops []Op
	for range 1 + r.IntN(2) {
		o := Op{Verb: []Verb{Create, Create, Put, Put, Delete}[r.IntN(5)], Record: Record{
			Kind: "k", ID: fmt.Sprint(r.IntN(16)), Owner: []string{"", "a", "1:a"}[r.IntN(3)],
			Expires: []time.Time{{}, epoch, epoch.Add(time.Minute)}[r.IntN(3)],
		}}
		if o.Verb == Put {
			old, err := d.Read(ctx, "k", o.Record.ID)
			if err != nil {
				return 0, err
			}
			o.Record.Version = old.Version
		}
		ops = append(ops, o)
	}
	ops[0].Changes = []Change{{Kind: "k", At: epoch}}
	return d.Write(ctx, ops)
}

// What a process remembers of a record is out of date as soon as another one changes it.
func TestEtcdBelievesItsMemoryInNothing(t *testing.T) {
	server := peers.Etcd(t, peers.EtcdOptions{})
	mine, theirs := openEtcdAt(t, server), openEtcdAt(t, server)
	change := map[string]func(id string){
		"changed": func(id string) { write(t, theirs, op(Put, id, "theirs", "2", read(t, theirs, id).Version)) },
		"deleted": func(id string) { write(t, theirs, op(Delete, id, "", "", 0)) },
		"recreated": func(id string) {
			write(t, theirs, op(Delete, id, "", "", 0))
			write(t, theirs, op(Create, id, "theirs", "2", 0))
		},
	}
	for _, tt := range []struct {
		what string
		verb Verb
		want error
	}{
		{"changed", Create, storage.ErrAlreadyExists},
		{"changed", Put, ErrConflict},
		{"changed", Delete, nil},
		{"deleted", Create, nil},
		{"deleted", Put, storage.ErrNotFound},
		{"deleted", Delete, storage.ErrNotFound},
		{"recreated", Create, storage.ErrAlreadyExists},
		{"recreated", Put, ErrConflict},
		{"recreated", Delete, nil},
	} {
		id := fmt.Sprintf("%s %d", tt.what, tt.verb)
		write(t, mine, op(Create, id, "mine", "1", 0))
		version := read(t, mine, id).Version
		change[tt.what](id)
		if _, err := mine.Write(t.Context(), []Op{op(tt.verb, id, "mine", "3", version)}); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", id, err, tt.want)
		}
	}
	// A record that was gone when it was last seen.
	_, err := mine.Read(t.Context(), "k", "new")
	wantErr(t, err, storage.ErrNotFound)
	write(t, theirs, op(Create, "new", "theirs", "1", 0))
	write(t, mine, op(Delete, "new", "", "", 0))
	if got := count(t, mine, "theirs"); got != 2 { // changed and recreated, which could not be created or put
		if keys := etcdKeys(t, mine, "o/k/6:theirs:"); len(keys) != 4 || got != 4 {
			t.Errorf("they have %d records, want 4, and index entries %q", got, keys)
		}
	}
}

// The log goes on through its segments: pages, places and trimming know nothing of them.
func TestEtcdLogHasSegments(t *testing.T) {
	server := peers.Etcd(t, peers.EtcdOptions{})
	ctx, a, b := t.Context(), openEtcdAt(t, server), openEtcdAt(t, server)
	const n = 5*segmentSize + 10
	var number atomic.Int64
	inParallel(t, 10, func(w int) error {
		d := []*etcdDriver{a, b}[w%2]
		for {
			i := number.Add(1)
			if i > n {
				return nil
			}
			o := op(Create, fmt.Sprint(i), "", "", 0)
			o.Changes[0].At = epoch.Add(time.Duration(i) * time.Second)
			if _, err := d.Write(ctx, []Op{o}); err != nil {
				return err
			}
		}
	})
	l, err := a.log(ctx)
	must(t, err)
	if got := len(l.segments); got < 3 || got > 6 {
		t.Errorf("%d writes by two processes made %d segments, want 3 to 6", n, got)
	}
	for _, segment := range l.segments {
		if got := len(etcdKeys(t, a, strings.TrimPrefix(a.entriesKey(segment), a.prefix))); got > 2*segmentSize+100 {
			t.Errorf("a segment has %d entries, want at most about %d per process", got, segmentSize)
		}
	}
	all := readLog(t, a, 0, 7)
	if len(all) != n {
		t.Fatalf("got %d changes, want %d", len(all), n)
	}
	for _, from := range []int{0, n / 3, n / 2, n - 1} {
		if got := readLog(t, b, all[from], 400); !slices.Equal(got, all[from+1:]) {
			t.Errorf("after change %d: got %d changes, want %d", from, len(got), n-1-from)
		}
	}
	trimmed, err := b.Trim(ctx, epoch.Add(1000*time.Hour), n-5)
	if err != nil || trimmed != n-5 {
		t.Errorf("trim: got %d and %v, want %d", trimmed, err, n-5)
	}
	if got := readLog(t, a, all[n-6], 100); !slices.Equal(got, all[n-5:]) {
		t.Errorf("after trimming: got %d changes, want the last 5", len(got))
	}
	if _, err := a.Changes(ctx, all[n-7], 100); !errors.Is(err, ErrTrimmed) {
		t.Errorf("a place that was trimmed: got %v", err)
	}
	kept := l.since(all[n-6]) // one or two
	a.rotate(ctx, l.segments[len(l.segments)-1])
	if l, err = a.log(ctx); err != nil || len(l.segments) != len(kept)+1 || l.segments[0] != kept[0] || len(kept) > 2 {
		t.Errorf("the log has segments %v (%v), want those of the last 5 changes, %v, and the new one: what is trimmed is forgotten", l.segments, err, kept)
	}
}

// readLog returns the places of all changes after one, read in pages.
func readLog(t *testing.T, d *etcdDriver, after int64, limit int) (seqs []int64) {
	t.Helper()
	for {
		page, err := d.Changes(t.Context(), after, limit)
		must(t, err)
		if len(page) == 0 {
			return seqs
		}
		for _, c := range page {
			if c.Seq <= after {
				t.Fatalf("change %d comes after %d", c.Seq, after)
			}
			after = c.Seq
			seqs = append(seqs, after)
		}
	}
}

// While others write, a reader that goes on from where it was misses nothing: no change appears behind it.
func TestEtcdShowsNoChangeLate(t *testing.T) {
	server := peers.Etcd(t, peers.EtcdOptions{})
	reader := openEtcdAt(t, server)
	writers := []*etcdDriver{openEtcdAt(t, server), openEtcdAt(t, server)}
	done := make(chan []int64, 1)
	const n = 800
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		var seqs []int64
		for after := int64(0); len(seqs) < n && ctx.Err() == nil; {
			page, err := reader.Changes(ctx, after, 10)
			if err != nil {
				break
			}
			for _, c := range page {
				after = c.Seq
				seqs = append(seqs, after)
			}
		}
		done <- seqs
	}()
	inParallel(t, 8, func(w int) error {
		for i := range n / 8 {
			if _, err := writers[w%2].Write(t.Context(), []Op{op(Create, fmt.Sprint(w, "-", i), "", "", 0)}); err != nil {
				return err
			}
			if i%40 == 39 {
				writers[w%2].rotate(t.Context(), writers[w%2].segment.current())
			}
		}
		return nil
	})
	after := readLog(t, reader, 0, 1000)
	timer := time.AfterFunc(time.Minute, cancel)
	defer timer.Stop()
	if got := <-done; !slices.Equal(got, after) || len(got) != n {
		t.Errorf("a reader meanwhile saw %d changes, one afterwards %d, want %d both", len(got), len(after), n)
	}
}

func TestEtcdCompactionTakesNothingFromTheLog(t *testing.T) {
	d := openEtcdAt(t, peers.Etcd(t, peers.EtcdOptions{}))
	for i := range 5 {
		write(t, d, op(Create, fmt.Sprint(i), "", "", 0))
	}
	last := write(t, d, op(Delete, "0", "", "", 0))
	_, err := d.client.Compact(t.Context(), last, clientv3.WithCompactPhysical())
	must(t, err)
	if got := readLog(t, d, 0, 2); len(got) != 6 {
		t.Errorf("got %d changes, want 6", len(got))
	}
}

// Somebody restores a backup: places in the log from before mean nothing any more.
func TestEtcdNoticesThatTheLogWasPutBack(t *testing.T) {
	d := openEtcdAt(t, peers.Etcd(t, peers.EtcdOptions{}))
	seq := write(t, d, op(Create, "a", "", "", 0))
	_, err := d.Changes(t.Context(), seq+1, 10)
	wantErr(t, err, ErrTrimmed)
	_, err = d.client.Delete(t.Context(), d.prefix, clientv3.WithPrefix())
	must(t, err)
	_, err = d.Changes(t.Context(), seq, 10)
	wantErr(t, err, ErrTrimmed)
	write(t, d, op(Create, "a", "", "", 0)) // and goes on
}

func TestEtcdDamagedEntryMeansAnything(t *testing.T) {
	d := openEtcdAt(t, peers.Etcd(t, peers.EtcdOptions{}))
	write(t, d, op(Create, "a", "", "", 0))
	for key := range strings.SplitSeq(strings.Join(etcdKeys(t, d, "log/entry/"), "\n"), "\n") {
		name, _, _ := strings.Cut(key, " ")
		_, err := d.client.Txn(t.Context()).Then(clientv3.OpPut(d.prefix+name, "{"), clientv3.OpPut(d.headKey(), "")).Commit()
		must(t, err)
	}
	changes, err := d.Changes(t.Context(), 0, 10)
	if err != nil || len(changes) != 1 || changes[0].Kind != "" || changes[0].Seq == 0 {
		t.Errorf("got %+v and %v, want one change of the zero Kind", changes, err)
	}
}

// A record that changes after the sweeper has read the index stays unless it is still due.
func TestEtcdSweepsOnlyWhatIsStillDue(t *testing.T) {
	server := peers.Etcd(t, peers.EtcdOptions{})
	ctx, d, other := t.Context(), openEtcdAt(t, server), openEtcdAt(t, server)
	var due []etcdDue
	for _, id := range []string{"same", "extended", "gone", "anew", "of another", "content"} {
		write(t, d, op(Create, id, "o", "", 0))
		key := d.dueKey("k", epoch.UnixNano()) + id
		res, err := d.client.Get(ctx, key)
		must(t, err)
		due = append(due, etcdDue{key: key, record: d.recordKey("k", id), owner: d.ownerKey("k", "o") + id, revision: res.Kvs[0].ModRevision})
	}
	put := func(id string, change func(*Record)) {
		o := op(Put, id, "o", "", read(t, other, id).Version)
		change(&o.Record)
		write(t, other, o)
	}
	put("extended", func(r *Record) { r.Expires = epoch.Add(time.Hour) })
	put("of another", func(r *Record) { r.Owner = "p" })
	put("content", func(r *Record) { r.Data = []byte("new") })
	write(t, other, op(Delete, "gone", "", "", 0))
	write(t, other, op(Delete, "anew", "", "", 0))
	write(t, other, op(Create, "anew", "p", "", 0))
	n, err := d.sweep(ctx, due)
	if err != nil || n != 2 {
		t.Errorf("got %d and %v, want 2 deleted: what is the same, and what has only other content", n, err)
	}
	var left []string
	for r, err := range d.Scan(ctx, Query{Kind: "k"}) {
		must(t, err)
		left = append(left, r.ID)
	}
	if want := []string{"anew", "extended", "of another"}; !slices.Equal(left, want) {
		t.Errorf("left are %q, want %q", left, want)
	}
	if got := etcdKeys(t, d, "o/"); len(got) != 3 {
		t.Errorf("index entries %q, want 3", got)
	}
}

func TestEtcdSweepersShareTheWork(t *testing.T) {
	server := peers.Etcd(t, peers.EtcdOptions{})
	a, b := openEtcdAt(t, server), openEtcdAt(t, server)
	const n = 2000
	s := newStore(a, Options{}, 0)
	fill(t.Context(), t, s, "old", n, epoch.Add(-time.Second))
	var total atomic.Int64
	inParallel(t, 2, func(i int) error {
		got, err := newStore([]Driver{a, b}[i], Options{}, 0).GarbageCollect(t.Context(), epoch)
		total.Add(got.AuthRequests)
		return err
	})
	if keys := etcdKeys(t, a, "x/"); total.Load() != n || len(keys) != 0 {
		t.Errorf("two sweepers deleted %d, want %d, and left %d", total.Load(), n, len(keys))
	}
}

// An entry of the index that says something else than the record is not believed.
func TestEtcdIndexIsNoProof(t *testing.T) {
	d := openEtcdAt(t, peers.Etcd(t, peers.EtcdOptions{}))
	write(t, d, op(Create, "a", "alice", "", 0), op(Create, "b", "bob", "", 0))
	for _, id := range []string{"b", "gone"} {
		_, err := d.client.Put(t.Context(), d.ownerKey("k", "alice")+id, "")
		must(t, err)
	}
	if got := count(t, d, "alice"); got != 1 {
		t.Errorf("alice has %d records, want 1", got)
	}
}

func TestEtcdTrimmersShareTheWork(t *testing.T) {
	server := peers.Etcd(t, peers.EtcdOptions{})
	drivers := []*etcdDriver{openEtcdAt(t, server), openEtcdAt(t, server)}
	const n = 400
	inParallel(t, 4, func(w int) error {
		for i := range n / 4 {
			if _, err := drivers[0].Write(t.Context(), []Op{op(Create, fmt.Sprint(w, "-", i), "", "", 0)}); err != nil {
				return err
			}
		}
		return nil
	})
	var total atomic.Int64
	inParallel(t, 4, func(w int) error {
		for total.Load() < n {
			got, err := drivers[w%2].Trim(t.Context(), epoch.Add(time.Hour), 20)
			if err != nil {
				return err
			}
			total.Add(int64(got))
		}
		return nil
	})
	l, err := drivers[0].log(t.Context())
	must(t, err)
	if keys := etcdKeys(t, drivers[0], "log/entry/"); total.Load() != n || len(keys) != 0 || l.floor != l.head {
		t.Errorf("four trimmers took %d entries, want %d, left %d, and put the floor to %d, want %d", total.Load(), n, len(keys), l.floor, l.head)
	}
}

func TestEtcdSaysWhatItsLimitsAre(t *testing.T) {
	d := openEtcdAt(t, peers.Etcd(t, peers.EtcdOptions{}))
	var many []Op
	for i := range etcdTxnOps/3 + 1 {
		many = append(many, op(Create, fmt.Sprint(i), "o", "", 0))
	}
	big := op(Create, "big", "o", "", 0)
	big.Record.Data = make([]byte, 1536<<10)
	for _, tt := range []struct {
		ops  []Op
		want string
	}{
		{many, "it takes 131 operations in one transaction, and etcd allows 128: make several smaller writes of it"},
		{[]Op{big}, "raise --max-request-bytes"},
	} {
		_, err := d.Write(t.Context(), tt.ops)
		if err == nil || isOutcome(err) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %.200v, want %q", err, tt.want)
		}
	}
	if got := etcdKeys(t, d, "r/"); len(got) != 0 {
		t.Errorf("%d records were written all the same", len(got))
	}
	write(t, d, many[:etcdTxnOps/3-1]...)
	d2 := openEtcdAt(t, peers.Etcd(t, peers.EtcdOptions{Args: []string{"--max-txn-ops=20"}}))
	if _, err := d2.Write(t.Context(), many[:20]); err == nil || !strings.Contains(err.Error(), "--max-txn-ops=128") {
		t.Errorf("got %v, want the flag", err)
	}
}

func TestEtcdRefusesANewerFormat(t *testing.T) {
	server := peers.Etcd(t, peers.EtcdOptions{})
	d := openEtcdAt(t, server)
	_, err := d.client.Put(t.Context(), d.formatKey(), "2")
	must(t, err)
	_, err = OpenEtcd(t.Context(), etcdAt(server), Options{})
	if err == nil || !strings.Contains(err.Error(), `the keys below "test/gatehouse/" are of format "2" and this Gatehouse knows format 1`) {
		t.Errorf("got %v", err)
	}
	other := etcdAt(server)
	other.Namespace = "other/"
	s, err := OpenEtcd(t.Context(), other, Options{})
	must(t, err)
	must(t, s.Close())
}

func TestEtcdOptionsAreChecked(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	must(t, os.WriteFile(text, []byte("no certificate"), 0o600))
	for _, tt := range []struct {
		o    EtcdOptions
		want string
	}{
		{EtcdOptions{}, "set storage.config.endpoints"},
		{EtcdOptions{Endpoints: []string{"etcd"}}, "want http://host:port"},
		{EtcdOptions{Endpoints: []string{"http://etcd:2379/path"}}, "want http://host:port"},
		{EtcdOptions{Endpoints: []string{"http://root:secret@etcd:2379"}}, "http://root:xxxxx@etcd:2379"},
		{EtcdOptions{Endpoints: []string{"ftp://etcd:2379"}}, `got scheme "ftp"`},
		{EtcdOptions{Endpoints: []string{"http://a:1", "https://b:1"}}, "make them all https"},
		{EtcdOptions{Endpoints: []string{"http://a:1"}, SSL: EtcdSSL{CAFile: text}}, "make them https, or leave ssl out"},
		{EtcdOptions{Endpoints: []string{"a:1"}, SSL: EtcdSSL{CAFile: text}}, "no PEM certificate"},
		{EtcdOptions{Endpoints: []string{"https://a:1"}, SSL: EtcdSSL{CAFile: filepath.Join(dir, "none")}}, "caFile: open"},
		{EtcdOptions{Endpoints: []string{"https://a:1"}, SSL: EtcdSSL{CertFile: text}}, "both certFile and keyFile"},
		{EtcdOptions{Endpoints: []string{"https://a:1"}, SSL: EtcdSSL{CertFile: text, KeyFile: text}}, "certFile and keyFile: tls"},
		{EtcdOptions{Endpoints: []string{"http://a:1"}, Username: "u"}, "both username and password"},
	} {
		_, err := OpenEtcd(t.Context(), tt.o, Options{})
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%+v: got %v, want %q", tt.o, err, tt.want)
		}
	}
}

func TestEtcdOverTLS(t *testing.T) {
	server := peers.Etcd(t, peers.EtcdOptions{TLS: true})
	good := EtcdSSL{CAFile: server.CA, CertFile: server.Certificate, KeyFile: server.Key}
	named := good
	named.ServerName = "etcd.example.com"
	try := func(ssl EtcdSSL) error {
		s, err := OpenEtcd(t.Context(), EtcdOptions{Endpoints: []string{server.Addr}, SSL: ssl}, Options{})
		if err != nil {
			return err
		}
		return errors.Join(s.Ping(t.Context()), s.Close())
	}
	must(t, try(good))
	must(t, try(named))
	for name, ssl := range map[string]EtcdSSL{
		"another name":   {ServerName: "other.example.com", CAFile: server.CA, CertFile: server.Certificate, KeyFile: server.Key},
		"system's roots": {CertFile: server.Certificate, KeyFile: server.Key},
		"no certificate": {CAFile: server.CA},
	} {
		if err := try(ssl); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}

// A client's certificate is renewed on disk: the next connection uses it.
func TestEtcdReadsItsCertificateAnew(t *testing.T) {
	server := peers.Etcd(t, peers.EtcdOptions{TLS: true})
	c, err := EtcdSSL{CertFile: server.Certificate, KeyFile: server.Key}.config()
	must(t, err)
	first, err := c.GetClientCertificate(nil)
	must(t, err)
	server.Renew(t)
	second, err := c.GetClientCertificate(nil)
	must(t, err)
	if slices.Equal(first.Certificate[0], second.Certificate[0]) {
		t.Error("the old certificate is still used")
	}
}

func TestEtcdWithAUser(t *testing.T) {
	server := peers.Etcd(t, peers.EtcdOptions{})
	ctx := t.Context()
	root, err := clientv3.New(clientv3.Config{Endpoints: []string{server.URL}, Context: ctx})
	must(t, err)
	defer func() { must(t, root.Close()) }()
	for name, role := range map[string]string{"root": "root", "gatehouse": "ours", "stranger": "none"} {
		_, err = root.UserAdd(ctx, name, "password")
		must(t, err)
		_, err = root.RoleAdd(ctx, role)
		must(t, err)
		_, err = root.UserGrantRole(ctx, name, role)
		must(t, err)
	}
	const prefix = "test/gatehouse/"
	_, err = root.RoleGrantPermission(ctx, "ours", prefix, clientv3.GetPrefixRangeEnd(prefix), clientv3.PermissionType(clientv3.PermReadWrite))
	must(t, err)
	_, err = root.AuthEnable(ctx)
	must(t, err)

	o := etcdAt(server)
	for _, tt := range []struct{ name, password, want string }{
		{"", "", "check storage.config.username"},
		{"gatehouse", "wrong", "check storage.config.username"},
		{"stranger", "password", `role grant-permission ROLE --prefix=true readwrite test/gatehouse/`},
	} {
		o.Username, o.Password = tt.name, tt.password
		if _, err := OpenEtcd(ctx, o, Options{}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("user %q: got %v, want %q", tt.name, err, tt.want)
		}
	}
	o.Username, o.Password = "gatehouse", "password"
	var logged syncBuffer
	a := openEtcdStore(t, o, Options{Logger: slog.New(slog.NewTextHandler(&logged, nil)), FeedInterval: time.Hour})
	b := openEtcdStore(t, o, Options{})
	t.Cleanup(func() { must(t, errors.Join(a.Close(), b.Close())) })
	if got := logged.String(); !strings.Contains(got, "in the clear") || strings.Contains(got, "password=") {
		t.Errorf("logged %q, want a warning about the password without it", got)
	}
	told := record(a)
	t.Run("all of it", func(t *testing.T) {
		follow(t, a)
		must(t, b.CreateAuthSession(ctx, newSession("1", "alice")))
		told.wait(ctx, t, 1)
		_, err := b.GarbageCollect(ctx, epoch.Add(1000*time.Hour))
		must(t, err)
		// The server forgets its tokens.
		server.Kill(t)
		server.Start(t)
		peers.Eventually(t, time.Minute, "a write after the restart", func() bool {
			return created(b.CreateClient(ctx, storage.Client{ID: "app"}))
		})
		told.wait(ctx, t, 2)
	})
}

// created reports whether there is a record, after trying to make it again and again: a try may have made it and not been answered.
func created(err error) bool { return err == nil || errors.Is(err, storage.ErrAlreadyExists) }

// The server is killed while writes are on their way. What was confirmed is there afterwards, and what failed has no outcome that is told.
func TestEtcdKilledDuringWrites(t *testing.T) {
	server := peers.Etcd(t, peers.EtcdOptions{})
	d := openEtcdAt(t, server)
	var confirmed, unknown sync.Map
	var n, failed atomic.Int64
	running := make(chan error, 1)
	go func() {
		var wg sync.WaitGroup
		errs := make([]error, 8)
		for w := range errs {
			wg.Go(func() {
				for i := range 100_000 {
					id := fmt.Sprint(w, "-", i)
					switch seq, err := d.Write(context.WithoutCancel(t.Context()), []Op{op(Create, id, "o", "", 0)}); {
					case err == nil:
						confirmed.Store(id, seq)
						n.Add(1)
					case isOutcome(err):
						errs[w] = fmt.Errorf("%s: got the outcome %w of a write that nobody else makes", id, err)
						return
					default:
						unknown.Store(id, true)
						failed.Add(1)
						return
					}
				}
			})
		}
		wg.Wait()
		running <- errors.Join(errs...)
	}()
	waitFor(t, func() bool { return n.Load() >= 200 })
	server.Kill(t)
	must(t, <-running)
	if failed.Load() != 8 {
		t.Errorf("%d writers failed, want all 8", failed.Load())
	}
	server.Start(t)
	peers.Eventually(t, time.Minute, "an answer after the restart", func() bool { _, err := d.Head(t.Context()); return err == nil })
	logged := map[int64]bool{}
	for _, seq := range readLog(t, d, 0, 1000) {
		logged[seq] = true
	}
	confirmed.Range(func(id, seq any) bool {
		if r, err := d.Read(t.Context(), "k", id.(string)); err != nil || r.Version != seq || !logged[seq.(int64)] {
			t.Errorf("%s was confirmed as %d, and is %d (%v), in the log: %t", id, seq, r.Version, err, logged[seq.(int64)])
		}
		return true
	})
	// Of the others each is there as a whole or not at all.
	there := int(n.Load())
	unknown.Range(func(id, _ any) bool {
		if _, err := d.Read(t.Context(), "k", id.(string)); err == nil {
			there++
		}
		return true
	})
	if index := len(etcdKeys(t, d, "o/")); len(logged) != there || index != there {
		t.Errorf("%d records, %d index entries and %d entries of the log, want the same number", there, index, len(logged))
	}
	t.Logf("%d writes confirmed, %d of unknown outcome, of which %d had happened", n.Load(), failed.Load(), there-int(n.Load()))
}

// A server that accepts and does not answer holds nobody for longer than they want, or than etcdTimeout.
func TestEtcdThatHangs(t *testing.T) {
	server := peers.Etcd(t, peers.EtcdOptions{})
	d := openEtcdAt(t, server)
	write(t, d, op(Create, "a", "o", "", 0))
	d.timeout = etcdTimeout
	server.Signal(t, syscall.SIGSTOP)
	calls := map[string]func(ctx context.Context) error{
		"read":    func(ctx context.Context) error { _, err := d.Read(ctx, "k", "a"); return err },
		"write":   func(ctx context.Context) error { _, err := d.Write(ctx, []Op{op(Create, "b", "", "", 0)}); return err },
		"changes": func(ctx context.Context) error { _, err := d.Changes(ctx, 0, 1); return err },
		"sweep":   func(ctx context.Context) error { _, err := d.Sweep(ctx, "k", time.Now(), 1); return err },
		"trim":    func(ctx context.Context) error { _, err := d.Trim(ctx, time.Now(), 1); return err },
		"scan": func(ctx context.Context) error {
			for _, err := range d.Scan(ctx, Query{Kind: "k", Owner: "o"}) {
				return err
			}
			return nil
		},
	}
	var wg sync.WaitGroup
	for name, call := range calls {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if err := call(ctx); !errors.Is(err, context.DeadlineExceeded) || isOutcome(err) {
				t.Errorf("%s with a deadline: got %v, want context.DeadlineExceeded", name, err)
			}
			if err := call(t.Context()); err == nil || isOutcome(err) || !strings.Contains(err.Error(), "no answer within 5s") {
				t.Errorf("%s: got %v, want that there was no answer", name, err)
			}
		})
	}
	wg.Wait()
	server.Signal(t, syscall.SIGCONT)
	peers.Eventually(t, time.Minute, "an answer after the pause", func() bool { return calls["read"](t.Context()) == nil })
}

func TestEtcdThatIsNotThere(t *testing.T) {
	_, err := OpenEtcd(t.Context(), EtcdOptions{Endpoints: []string{peers.FreeAddr(t)}}, Options{})
	if err == nil || !strings.Contains(err.Error(), "connection refused") || !strings.Contains(err.Error(), "endpoints http://127.0.0.1:") || !strings.Contains(err.Error(), "check that etcd runs there, and storage.config.endpoints") {
		t.Errorf("got %v, want the address, that it refuses connections, and what to do", err)
	}
}
