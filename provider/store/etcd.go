package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dexidp/dex/storage"
)

const (
	// etcdTimeout bounds one request. An election takes some 2 s; clients ask again where that is safe.
	etcdTimeout = 5 * time.Second
	// etcdTxnOps is how many operations, and how many comparisons, etcd takes in one transaction unless --max-txn-ops says otherwise.
	etcdTxnOps = 128
	// etcdPage is how many records a scan reads at once.
	etcdPage = 100
)

// An etcdDriver is a Driver over a range of keys in etcd. The keys below its prefix:
//
//	format                          of all this: "1"
//	r/KIND/ID                       a record: its version is the revision of its last change, which no other change in the cluster has
//	o/KIND/LENGTH:OWNER:ID          index of records by owner
//	x/KIND/EXPIRY/ID                index of records by expiry, with the owner as its value
//	log/head                        written with each entry of the change log: its revision is the last Seq
//	log/floor                       the last Seq that was trimmed
//	log/segment                     its revision names the segment of the log that is written to; the earlier ones are its value
//	log/entry/SEGMENT/WRITER-N      the changes of one Write; its revision is their Seq
//
// A Write is one transaction. Seq is its revision, and so is in the order of commits by nature; but no key can contain the revision that is
// to come, and etcd finds nothing by revision. Therefore the log is cut into segments: a write compares that its segment is still the
// last one, so that all entries of one are older than all of the next, and a reader goes through those few that it needs. etcd's own
// history is not used: it may be compacted at any time.
//
// Records do not expire by leases. A lease is two more writes whenever an expiry moves (see BenchmarkMovingAnExpiryInEtcd: 2.3 times as
// long), counts in the server's time, starts anew when the leader changes, and leaves entries of the index by owner behind.
type etcdDriver struct {
	client    *clientv3.Client
	anonymous *clientv3.Client // see authenticateOver; nil without a user

	timeout time.Duration // etcdTimeout
	prefix  string
	writer  string // names this driver's entries of the log
	writes  atomic.Int64

	segment etcdSegment
	known   etcdMemory
}

// The keys: see etcdDriver.
func (d *etcdDriver) kindKey(k Kind) string              { return d.prefix + "r/" + string(k) + "/" }
func (d *etcdDriver) recordKey(k Kind, id string) string { return d.kindKey(k) + id }
func (d *etcdDriver) dueKeys(k Kind) string              { return d.prefix + "x/" + string(k) + "/" }
func (d *etcdDriver) formatKey() string                  { return d.prefix + "format" }
func (d *etcdDriver) headKey() string                    { return d.prefix + "log/head" }
func (d *etcdDriver) floorKey() string                   { return d.prefix + "log/floor" }
func (d *etcdDriver) segmentKey() string                 { return d.prefix + "log/segment" }

func (d *etcdDriver) ownerKey(k Kind, owner string) string {
	return fmt.Sprintf("%so/%s/%d:%s:", d.prefix, k, len(owner), owner)
}

func (d *etcdDriver) dueKey(k Kind, nanos int64) string {
	return fmt.Sprintf("%s%016x/", d.dueKeys(k), nanos)
}

func (d *etcdDriver) entriesKey(segment int64) string {
	return fmt.Sprintf("%slog/entry/%016x/", d.prefix, segment)
}

// dueLength is how long EXPIRY/ is in a key.
const dueLength = 17

// etcdMeta is what a transaction needs to know of a record. The zero value stands for none.
type etcdMeta struct {
	version int64
	owner   string
	expires int64 // Unix nanoseconds, 0 for never
}

// recordFormat is the first byte of a stored record.
const recordFormat = 1

// encodeEtcd returns a stored record: format, expiry, length of the owner, owner, data.
func encodeEtcd(r Record) string {
	b := make([]byte, 0, 1+8+binary.MaxVarintLen64+len(r.Owner)+len(r.Data))
	b = append(b, recordFormat)
	b = binary.BigEndian.AppendUint64(b, uint64(toNanos(r.Expires))) //nolint:gosec // G115: only its bits matter
	b = binary.AppendUvarint(b, uint64(len(r.Owner)))
	b = append(b, r.Owner...)
	return string(append(b, r.Data...))
}

// decodeEtcd returns a record of a given version.
func decodeEtcd(k Kind, id string, version int64, b []byte) (Record, etcdMeta, error) {
	bad := fmt.Errorf("store: etcd: what is stored as %s is not a record of this version of Gatehouse", k)
	if len(b) < 10 || b[0] != recordFormat {
		return Record{}, etcdMeta{}, bad
	}
	expires := int64(binary.BigEndian.Uint64(b[1:])) //nolint:gosec // G115: as it was encoded
	n, size := binary.Uvarint(b[9:])
	if size <= 0 || n > uint64(len(b)-9-size) { //nolint:gosec // G115: what is left is not negative
		return Record{}, etcdMeta{}, bad
	}
	rest := b[9+size:]
	m := etcdMeta{version: version, owner: string(rest[:n]), expires: expires}
	return Record{Kind: k, ID: id, Owner: m.owner, Version: version, Expires: fromNanos(expires), Data: rest[n:]}, m, nil
}

// etcdMemory remembers records that were seen lately, so that a write that follows a read needs not read again whose index entries it
// replaces. A version says all of it, for ever: what is out of date is noticed by the comparison of the version.
type etcdMemory struct {
	mu   sync.Mutex
	seen map[string]etcdMeta
}

const etcdMemorySize = 4096

func (m *etcdMemory) get(key string) etcdMeta {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.seen[key]
}

func (m *etcdMemory) set(key string, v etcdMeta) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v.version == 0 {
		delete(m.seen, key)
		return
	}
	if m.seen == nil {
		m.seen = map[string]etcdMeta{}
	}
	if len(m.seen) >= etcdMemorySize {
		for other := range m.seen { // any
			delete(m.seen, other)
			break
		}
	}
	m.seen[key] = v
}

func (d *etcdDriver) Close() error {
	var err error
	for _, c := range []*clientv3.Client{d.client, d.anonymous} {
		if c != nil {
			err = errors.Join(err, c.Close())
		}
	}
	return err
}

func (d *etcdDriver) Read(ctx context.Context, kind Kind, id string) (Record, error) {
	key := d.recordKey(kind, id)
	res, err := d.get(ctx, "read "+string(kind), key)
	if err != nil {
		return Record{}, err
	}
	if len(res.Kvs) == 0 {
		d.known.set(key, etcdMeta{})
		return Record{}, storage.ErrNotFound
	}
	r, meta, err := decodeEtcd(kind, id, res.Kvs[0].ModRevision, res.Kvs[0].Value)
	if err != nil {
		return Record{}, err
	}
	d.known.set(key, meta)
	return r, nil
}

// get asks for a key or a range of keys. Reads of etcd are linearizable unless asked to be otherwise.
func (d *etcdDriver) get(ctx context.Context, what, key string, o ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	call, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	res, err := d.client.Get(call, key, o...)
	if err != nil {
		return nil, d.failed(ctx, what, err)
	}
	return res, nil
}

// txn asks for all of then if what is compared is so, and for all of otherwise if not.
func (d *etcdDriver) txn(ctx context.Context, what string, compare []clientv3.Cmp, then, otherwise []clientv3.Op) (*clientv3.TxnResponse, error) {
	if n := max(len(compare), len(then), len(otherwise)); n > etcdTxnOps {
		return nil, fmt.Errorf("store: etcd: %s: it takes %d operations in one transaction, and etcd allows %d: make several smaller writes of it", what, n, etcdTxnOps)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	call, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	res, err := d.client.Txn(call).If(compare...).Then(then...).Else(otherwise...).Commit()
	if err != nil {
		return nil, d.failed(ctx, what, err)
	}
	return res, nil
}

func (d *etcdDriver) Scan(ctx context.Context, q Query) iter.Seq2[Record, error] {
	page := d.page
	if q.Owner != "" {
		page = d.pageOfOwner
	}
	return func(yield func(Record, error) bool) {
		for after, more := "", true; more; {
			var records []Record
			var err error
			if records, after, more, err = page(ctx, q, after); err != nil {
				yield(Record{}, err)
				return
			}
			for _, r := range records {
				if !yield(r, nil) {
					return
				}
			}
		}
	}
}

// page returns the next records after a key ("" for the first), and the key of the last one.
func (d *etcdDriver) page(ctx context.Context, q Query, after string) (page []Record, last string, more bool, err error) {
	prefix := d.kindKey(q.Kind)
	res, err := d.get(ctx, "list "+string(q.Kind), start(prefix, after), clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)), clientv3.WithLimit(etcdPage))
	if err != nil {
		return nil, "", false, err
	}
	for _, kv := range res.Kvs {
		last = string(kv.Key)
		r, _, err := decodeEtcd(q.Kind, last[len(prefix):], kv.ModRevision, kv.Value)
		if err != nil {
			return nil, "", false, err
		}
		page = append(page, r)
	}
	return page, last, res.More, nil
}

// start returns where a range begins that goes on after a key.
func start(prefix, after string) string {
	if after == "" {
		return prefix
	}
	return after + "\x00"
}

// pageOfOwner is page by the index. A record that changes hands meanwhile is left out.
func (d *etcdDriver) pageOfOwner(ctx context.Context, q Query, after string) (page []Record, last string, more bool, err error) {
	what, prefix := "list "+string(q.Kind), d.ownerKey(q.Kind, q.Owner)
	index, err := d.get(ctx, what, start(prefix, after),
		clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)), clientv3.WithLimit(etcdPage), clientv3.WithKeysOnly())
	if err != nil || len(index.Kvs) == 0 {
		return nil, "", false, err
	}
	ids, gets := make([]string, len(index.Kvs)), make([]clientv3.Op, len(index.Kvs))
	for i, kv := range index.Kvs {
		last = string(kv.Key)
		ids[i] = last[len(prefix):]
		gets[i] = clientv3.OpGet(d.recordKey(q.Kind, ids[i]))
	}
	res, err := d.txn(ctx, what, nil, gets, nil)
	if err != nil {
		return nil, "", false, err
	}
	for i, part := range res.Responses {
		kvs := part.GetResponseRange().Kvs
		if len(kvs) == 0 {
			continue
		}
		r, _, err := decodeEtcd(q.Kind, ids[i], kvs[0].ModRevision, kvs[0].Value)
		if err != nil {
			return nil, "", false, err
		}
		if r.Owner == q.Owner {
			page = append(page, r)
		}
	}
	return page, last, index.More, nil
}

// Sweep deletes by the index of expiries. Whoever moves a record's expiry moves its index entry too: an entry that is as it was read says
// that the record has still the same expiry.
func (d *etcdDriver) Sweep(ctx context.Context, kind Kind, before time.Time, limit int) (n int, err error) {
	// Another process may sweep the same records: it goes on until the limit is reached or nothing is left.
	for n < limit {
		prefix := d.dueKeys(kind)
		due, err := d.get(ctx, "sweep "+string(kind), prefix,
			clientv3.WithRange(d.dueKey(kind, toNanos(expiry(before)))), clientv3.WithLimit(int64(limit-n)))
		if err != nil || len(due.Kvs) == 0 {
			return n, err
		}
		entries := make([]etcdDue, len(due.Kvs))
		for i, kv := range due.Kvs {
			id := string(kv.Key)[len(prefix)+dueLength:]
			entries[i] = etcdDue{key: string(kv.Key), revision: kv.ModRevision, record: d.recordKey(kind, id)}
			if owner := string(kv.Value); owner != "" {
				entries[i].owner = d.ownerKey(kind, owner) + id
			}
		}
		deleted, err := d.sweepAll(ctx, entries)
		n += deleted
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// An etcdDue is an entry of the index of expiries, with the other keys that go with it.
type etcdDue struct {
	key, record, owner string
	revision           int64
}

// sweepBatch is how many records one transaction deletes: each has three keys.
const sweepBatch = etcdTxnOps / 3

// sweepAll deletes records in batches, a few at a time: etcd writes together to its disk what it gets at once.
func (d *etcdDriver) sweepAll(ctx context.Context, entries []etcdDue) (int, error) {
	var wg sync.WaitGroup
	var deleted atomic.Int64
	errs := make(chan error, len(entries)/sweepBatch+1)
	slots := make(chan struct{}, 4)
	for len(entries) > 0 {
		batch := entries[:min(sweepBatch, len(entries))]
		entries = entries[len(batch):]
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			n, err := d.sweep(ctx, batch)
			deleted.Add(int64(n))
			errs <- err
		})
	}
	wg.Wait()
	close(errs)
	var all error
	for err := range errs {
		all = errors.Join(all, err)
	}
	return int(deleted.Load()), all
}

// sweep deletes the records of those entries that are as they were read.
func (d *etcdDriver) sweep(ctx context.Context, batch []etcdDue) (int, error) {
	for len(batch) > 0 {
		var same []clientv3.Cmp
		var gone, look []clientv3.Op
		for _, e := range batch {
			same = append(same, clientv3.Compare(clientv3.ModRevision(e.key), "=", e.revision))
			gone = append(gone, clientv3.OpDelete(e.key), clientv3.OpDelete(e.record))
			if e.owner != "" {
				gone = append(gone, clientv3.OpDelete(e.owner))
			}
			look = append(look, clientv3.OpGet(e.key, clientv3.WithKeysOnly()))
		}
		res, err := d.txn(ctx, "sweep", same, gone, look)
		if err != nil {
			return 0, err
		}
		if res.Succeeded {
			return len(batch), nil
		}
		var rest []etcdDue
		for i, part := range res.Responses {
			if kvs := part.GetResponseRange().Kvs; len(kvs) == 1 && kvs[0].ModRevision == batch[i].revision {
				rest = append(rest, batch[i])
			}
		}
		batch = rest
	}
	return 0, nil
}
