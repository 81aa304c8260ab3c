package store

import (
	"context"
	"errors"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dexidp/dex/storage"
)

// errChangedMeanwhile means that the database is not as a transaction expected it.
var errChangedMeanwhile = errors.New("store: etcd: changed meanwhile")

// An etcdView says what is known of the records that a Write is about, by key.
type etcdView map[string]etcdMeta

// Write decides by what it knows of the records and has etcd compare that it is so. The first time it takes its memory's word, that of
// the transaction that failed afterwards: no outcome is told but by what etcd said during this call.
func (d *etcdDriver) Write(ctx context.Context, ops []Op) (int64, error) {
	if err := ctx.Err(); err != nil || len(ops) == 0 {
		return 0, err
	}
	w, err := d.newWrite(ops)
	if err != nil {
		return 0, err
	}
	view, sure := d.guess(w.keys), false
	for try := range maxTries {
		err := w.decide(view)
		switch {
		case err != nil && sure:
			return 0, err
		case err != nil:
			if view, err = d.look(ctx, w.keys); err != nil {
				return 0, err
			}
			sure = true
			continue
		}
		var seq int64
		seq, view, err = d.commit(ctx, w, view)
		if !errors.Is(err, errChangedMeanwhile) {
			return seq, err
		}
		sure = true
		if try > 1 {
			if err := pause(ctx, try); err != nil {
				return 0, err
			}
		}
	}
	return 0, fmt.Errorf("store: etcd: write %s: its records were changed by others, %d times in a row: try again later", ops[0].Record.Kind, maxTries)
}

// guess returns what the memory says: nothing known means nothing there.
func (d *etcdDriver) guess(keys []string) etcdView {
	view := etcdView{}
	for _, key := range keys {
		view[key] = d.known.get(key)
	}
	return view
}

func (d *etcdDriver) look(ctx context.Context, keys []string) (etcdView, error) {
	gets := make([]clientv3.Op, len(keys))
	for i, key := range keys {
		gets[i] = clientv3.OpGet(key)
	}
	res, err := d.txn(ctx, "read", nil, gets, nil)
	if err != nil {
		return nil, err
	}
	return d.seen(keys, res)
}

// seen returns what the first parts of a response say about records, and remembers it.
func (d *etcdDriver) seen(keys []string, res *clientv3.TxnResponse) (etcdView, error) {
	view := etcdView{}
	for i, key := range keys {
		var meta etcdMeta
		if kvs := res.Responses[i].GetResponseRange().Kvs; len(kvs) != 0 {
			var err error
			if _, meta, err = decodeEtcd("", "", kvs[0].ModRevision, kvs[0].Value); err != nil {
				return nil, err
			}
		}
		view[key] = meta
		d.known.set(key, meta)
	}
	return view, nil
}

// An etcdWrite is a Write on its way to a transaction.
type etcdWrite struct {
	d     *etcdDriver
	ops   []Op
	keys  []string          // of the records, each once
	ids   map[string]Record // by key, of which only kind and ID count
	entry string            // of the change log; empty: none
	name  string            // of that entry

	final map[string]*Record // by key, what the records will be; nil for those that will not be
}

func (d *etcdDriver) newWrite(ops []Op) (*etcdWrite, error) {
	w := &etcdWrite{d: d, ops: ops, ids: map[string]Record{}}
	var changes []Change
	for _, op := range ops {
		key := d.recordKey(op.Record.Kind, op.Record.ID)
		if _, have := w.ids[key]; !have {
			w.ids[key] = op.Record
			w.keys = append(w.keys, key)
		}
		changes = append(changes, op.Changes...)
	}
	if len(changes) == 0 {
		return w, nil
	}
	var err error
	w.entry, err = encodeEntry(changes)
	w.name = fmt.Sprintf("%s-%d", d.writer, d.writes.Add(1))
	return w, err
}

// decide makes w.final out of what there is, or returns why that cannot be.
func (w *etcdWrite) decide(view etcdView) error {
	w.final = map[string]*Record{}
	version := map[string]int64{}
	for key, meta := range view {
		version[key] = meta.version
	}
	for i := range w.ops {
		op := &w.ops[i]
		key := w.d.recordKey(op.Record.Kind, op.Record.ID)
		switch now := version[key]; {
		case op.Verb < Create || op.Verb > Delete:
			return fmt.Errorf("store: unknown verb %d", op.Verb)
		case op.Verb == Create && now != 0:
			return storage.ErrAlreadyExists
		case op.Verb != Create && now == 0:
			return storage.ErrNotFound
		case op.Verb == Put && now != op.Record.Version:
			return ErrConflict
		}
		if op.Verb == Delete {
			version[key], w.final[key] = 0, nil
		} else {
			version[key], w.final[key] = -1, &op.Record // what the version will be is not known yet: nobody can ask for it
		}
	}
	return nil
}

// commit makes w.final true if everything is still as view says, and returns the Seq. Otherwise it returns how it is instead, and
// errChangedMeanwhile.
func (d *etcdDriver) commit(ctx context.Context, w *etcdWrite, view etcdView) (int64, etcdView, error) {
	segment := d.segment.current()
	same, then, look := w.transaction(view, segment)
	res, err := d.txn(ctx, "write "+string(w.ops[0].Record.Kind), same, then, look)
	if err != nil {
		return 0, nil, err
	}
	if !res.Succeeded {
		now, err := d.seen(w.keys, res)
		if err != nil {
			return 0, nil, err
		}
		if w.entry != "" {
			d.segment.moved(revision(res.Responses[len(w.keys)].GetResponseRange().Kvs))
		}
		return 0, now, errChangedMeanwhile
	}
	for key, r := range w.final {
		var meta etcdMeta
		if r != nil {
			meta = etcdMeta{version: res.Header.Revision, owner: r.Owner, expires: toNanos(r.Expires)}
		}
		d.known.set(key, meta)
	}
	if w.entry == "" {
		return 0, nil, nil
	}
	if d.segment.wrote(segment) {
		d.rotate(ctx, segment)
	}
	return res.Header.Revision, nil, nil
}

// transaction returns what is to be compared, what to do if it is so, and what to read if not.
func (w *etcdWrite) transaction(view etcdView, segment int64) (same []clientv3.Cmp, then, look []clientv3.Op) {
	for _, key := range w.keys {
		same = append(same, clientv3.Compare(clientv3.ModRevision(key), "=", view[key].version))
		then = append(then, w.replace(key, view[key])...)
		look = append(look, clientv3.OpGet(key))
	}
	if w.entry != "" {
		key := w.d.segmentKey()
		same = append(same, clientv3.Compare(clientv3.ModRevision(key), "=", segment))
		then = append(then, clientv3.OpPut(w.d.headKey(), ""), clientv3.OpPut(w.d.entriesKey(segment)+w.name, w.entry))
		look = append(look, clientv3.OpGet(key, clientv3.WithKeysOnly()))
	}
	return same, then, look
}

// replace returns what turns a record into what it will be, with its index entries.
func (w *etcdWrite) replace(key string, old etcdMeta) (ops []clientv3.Op) {
	var owner, nextOwner string
	var expires, nextExpires int64
	if old.version != 0 {
		owner, expires = old.owner, old.expires
	}
	next := w.final[key]
	switch {
	case next != nil:
		nextOwner, nextExpires = next.Owner, toNanos(next.Expires)
		ops = append(ops, clientv3.OpPut(key, encodeEtcd(*next)))
	case old.version != 0:
		ops = append(ops, clientv3.OpDelete(key))
	}
	id := w.ids[key]
	if owner != nextOwner {
		if owner != "" {
			ops = append(ops, clientv3.OpDelete(w.d.ownerKey(id.Kind, owner)+id.ID))
		}
		if nextOwner != "" {
			ops = append(ops, clientv3.OpPut(w.d.ownerKey(id.Kind, nextOwner)+id.ID, ""))
		}
	}
	if expires != 0 && expires != nextExpires {
		ops = append(ops, clientv3.OpDelete(w.d.dueKey(id.Kind, expires)+id.ID))
	}
	if nextExpires != 0 && (expires != nextExpires || owner != nextOwner) {
		ops = append(ops, clientv3.OpPut(w.d.dueKey(id.Kind, nextExpires)+id.ID, nextOwner))
	}
	return ops
}
