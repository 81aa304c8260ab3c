package store

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// segmentSize is after how many entries a process closes a segment of the log. Readers ask for the last segment whenever something is
// new, and etcd looks at all of its entries.
const segmentSize = 500

// An etcdSegment is the segment that this process writes to.
type etcdSegment struct {
	mu      sync.Mutex
	begun   int64 // the revision that began it; 0 before the first one
	entries int   // about how many there are in it, those of others since it was read not counted
}

func (s *etcdSegment) current() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.begun
}

// moved says which segment is the last one.
func (s *etcdSegment) moved(begun int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.begun != begun {
		s.begun, s.entries = begun, 0
	}
}

// wrote counts an entry and reports whether its writer is to close the segment.
func (s *etcdSegment) wrote(segment int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.begun != segment {
		return false
	}
	s.entries++
	return s.entries%segmentSize == 0
}

// An etcdChange is a Change in an entry of the log.
type etcdChange struct {
	Kind        Kind      `json:"kind"`
	ID          string    `json:"id,omitempty"`
	UserID      string    `json:"user,omitempty"`
	ConnectorID string    `json:"connector,omitempty"`
	Deleted     bool      `json:"deleted,omitempty"`
	At          time.Time `json:"at"`
	Origin      string    `json:"origin,omitempty"`
}

func encodeEntry(changes []Change) (string, error) {
	list := make([]etcdChange, len(changes))
	for i, c := range changes {
		list[i] = etcdChange{c.Kind, c.ID, c.UserID, c.ConnectorID, c.Deleted, c.At.UTC(), c.Origin}
	}
	b, err := json.Marshal(list)
	if err != nil {
		return "", fmt.Errorf("store: etcd: encode changes: %w", err)
	}
	return string(b), nil
}

// decodeEntry returns the changes of a Write. What cannot be read may have been anything.
func decodeEntry(kv *mvccpb.KeyValue) []Change {
	var list []etcdChange
	if err := json.Unmarshal(kv.Value, &list); err != nil || len(list) == 0 {
		return []Change{{Seq: kv.ModRevision}}
	}
	changes := make([]Change, len(list))
	for i, c := range list {
		changes[i] = Change{kv.ModRevision, c.Kind, c.ID, c.UserID, c.ConnectorID, c.Deleted, c.At, c.Origin}
	}
	return changes
}

// etcdLog is the state of the log at one moment.
type etcdLog struct {
	head, floor   int64
	floorRevision int64
	segments      []int64 // in order; the last one is written to
}

func (d *etcdDriver) log(ctx context.Context) (etcdLog, error) {
	res, err := d.txn(ctx, "read the change log", nil, []clientv3.Op{
		clientv3.OpGet(d.headKey()), clientv3.OpGet(d.floorKey()), clientv3.OpGet(d.segmentKey()),
	}, nil)
	if err != nil {
		return etcdLog{}, err
	}
	var l etcdLog
	l.head = revision(res.Responses[0].GetResponseRange().Kvs)
	floor, segment := res.Responses[1].GetResponseRange().Kvs, res.Responses[2].GetResponseRange().Kvs
	if l.floor, err = floorOf(floor); err != nil {
		return etcdLog{}, err
	}
	l.floorRevision = revision(floor)
	if len(segment) != 0 {
		if err := json.Unmarshal(segment[0].Value, &l.segments); err != nil {
			return etcdLog{}, fmt.Errorf("store: etcd: the list of the change log's segments cannot be read: %w", err)
		}
	}
	l.segments = append(l.segments, revision(segment))
	return l, nil
}

// revision returns that of the last change of the key that was asked for, 0 if there is no such key.
func revision(kvs []*mvccpb.KeyValue) int64 {
	if len(kvs) == 0 {
		return 0
	}
	return kvs[0].ModRevision
}

func floorOf(kvs []*mvccpb.KeyValue) (int64, error) {
	if len(kvs) == 0 {
		return 0, nil
	}
	n, err := strconv.ParseInt(string(kvs[0].Value), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("store: etcd: how far the change log was trimmed cannot be read: %w", err)
	}
	return n, nil
}

// since returns the segments with entries after a Seq: all but those that were closed before.
func (l etcdLog) since(after int64) []int64 {
	i := 0
	for i < len(l.segments)-1 && l.segments[i+1] <= after {
		i++
	}
	return l.segments[i:]
}

func (d *etcdDriver) Head(ctx context.Context) (int64, error) {
	res, err := d.get(ctx, "read the change log", d.headKey())
	if err != nil {
		return 0, err
	}
	return revision(res.Kvs), nil
}

// Changes reads segment after segment. None but the last can get entries any more, and those of the last are read at one moment.
func (d *etcdDriver) Changes(ctx context.Context, after int64, limit int) ([]Change, error) {
	l, err := d.log(ctx)
	if err != nil {
		return nil, err
	}
	if after > l.head { // the database was put back to an earlier state
		return nil, ErrTrimmed
	}
	if after == l.head {
		return nil, nil
	}
	var out []Change
	writes := 0
	for _, segment := range l.since(after) {
		entries, floor, err := d.entries(ctx, segment, after)
		if err != nil {
			return nil, err
		}
		if after < floor {
			return nil, ErrTrimmed
		}
		for _, kv := range entries {
			if writes == limit {
				return out, nil
			}
			writes++
			out = append(out, decodeEntry(kv)...)
		}
	}
	return out, nil
}

// entries returns those of a segment after a Seq, in order, and how far the log is trimmed at the same moment.
func (d *etcdDriver) entries(ctx context.Context, segment, after int64) (entries []*mvccpb.KeyValue, floor int64, err error) {
	res, err := d.txn(ctx, "read the change log", nil, []clientv3.Op{
		clientv3.OpGet(d.floorKey()),
		clientv3.OpGet(d.entriesKey(segment), clientv3.WithPrefix(), clientv3.WithMinModRev(after+1)),
	}, nil)
	if err != nil {
		return nil, 0, err
	}
	if floor, err = floorOf(res.Responses[0].GetResponseRange().Kvs); err != nil {
		return nil, 0, err
	}
	entries = res.Responses[1].GetResponseRange().Kvs
	slices.SortFunc(entries, func(a, b *mvccpb.KeyValue) int { return int(a.ModRevision - b.ModRevision) })
	return entries, floor, nil
}

// learnSegment finds out which segment is the last one and how full it is.
func (d *etcdDriver) learnSegment(ctx context.Context) error {
	l, err := d.log(ctx)
	if err != nil {
		return err
	}
	last := l.segments[len(l.segments)-1]
	res, err := d.get(ctx, "read the change log", d.entriesKey(last), clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return err
	}
	d.segment.mu.Lock()
	defer d.segment.mu.Unlock()
	d.segment.begun, d.segment.entries = last, int(res.Count)
	return nil
}

// rotate closes a segment and begins the next one. If that fails, a later writer will do it.
func (d *etcdDriver) rotate(ctx context.Context, segment int64) {
	l, err := d.log(ctx)
	if err != nil || l.segments[len(l.segments)-1] != segment {
		return
	}
	// Those that were trimmed to their end are forgotten.
	list, err := json.Marshal(l.since(l.floor))
	if err != nil {
		return
	}
	key := d.segmentKey()
	res, err := d.txn(ctx, "go on with the change log", []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(key), "=", segment)},
		[]clientv3.Op{clientv3.OpPut(key, string(list))}, nil)
	if err == nil && res.Succeeded {
		d.segment.moved(res.Header.Revision)
	}
}

// Trim deletes the oldest entries and says so, in one transaction of as many as fit.
func (d *etcdDriver) Trim(ctx context.Context, before time.Time, limit int) (n int, err error) {
	for n < limit {
		l, err := d.log(ctx)
		if err != nil {
			return n, err
		}
		old, changes, err := d.oldest(ctx, l, before, limit-n)
		if err != nil || len(old) == 0 {
			return n, err
		}
		last := old[len(old)-1].ModRevision
		ops := []clientv3.Op{clientv3.OpPut(d.floorKey(), strconv.FormatInt(last, 10))}
		for _, kv := range old {
			ops = append(ops, clientv3.OpDelete(string(kv.Key)))
		}
		res, err := d.txn(ctx, "trim the change log",
			[]clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(d.floorKey()), "=", l.floorRevision)}, ops, nil)
		if err != nil {
			return n, err
		}
		if !res.Succeeded { // somebody else is at it
			return n, nil
		}
		n += changes
	}
	return n, nil
}

// oldest returns the oldest entries from before a time, as many as a transaction takes, and how many changes are in them: at most limit,
// and the rest of the last one's write.
func (d *etcdDriver) oldest(ctx context.Context, l etcdLog, before time.Time, limit int) (old []*mvccpb.KeyValue, changes int, err error) {
	for _, segment := range l.since(l.floor) {
		entries, _, err := d.entries(ctx, segment, l.floor)
		if err != nil {
			return nil, 0, err
		}
		for _, kv := range entries {
			list := decodeEntry(kv)
			if changes >= limit || len(old) == etcdTxnOps-1 || !list[0].At.Before(before) {
				return old, changes, nil
			}
			old, changes = append(old, kv), changes+len(list)
		}
		if len(old) > 0 {
			break
		}
	}
	return old, changes, nil
}

// wakePause is the longest pause between two tries to hear of changes.
const wakePause = 5 * time.Second

// Wake watches the one key that is written with every entry of the change log. The client connects again by itself and goes on where it
// was; where that is not possible any more (the history was compacted, there is no leader), the watch is begun anew, from now on.
func (d *etcdDriver) Wake(ctx context.Context, woken func()) {
	for next := 50 * time.Millisecond; ctx.Err() == nil; next = min(2*next, wakePause) {
		if d.watch(ctx, woken) {
			next = 50 * time.Millisecond
		}
		if ctx.Err() != nil {
			return
		}
		woken() // it may be long until it hears again: the log is read meanwhile
		timer := time.NewTimer(next)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// watch calls woken until the watch ends, and reports whether it ever heard anything.
func (d *etcdDriver) watch(ctx context.Context, woken func()) (heard bool) {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	for res := range d.client.Watch(ctx, d.headKey(), clientv3.WithCreatedNotify()) {
		if res.Err() != nil {
			return heard
		}
		heard = true
		woken() // for the beginning of the watch too: what was written just before it is not told
	}
	return heard
}
