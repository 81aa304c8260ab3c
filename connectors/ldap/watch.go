package ldap

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"regexp"
	"slices"
	"strings"
	"time"

	ldapv3 "github.com/go-ldap/ldap/v3"

	"gatehouse/connectors"
)

const (
	// tellEvery is how often changes are told at most; those between are gathered. More than tellSingly users at once are told as everybody.
	tellEvery  = 300 * time.Millisecond
	tellSingly = 100
	// watchedEntries is how many entries are remembered by what was last seen of them, in 16 bytes for each and its id. Beyond, all are forgotten,
	// and the next change of each is told, whatever it is.
	watchedEntries = 100_000
)

// Watch calls f for each change that the directory tells of, until ctx ends or the directory stops telling. It returns ErrNoWatch where
// the directory cannot, or the configuration does not want it. f must not block.
//
// It begins with a change of everybody, since nobody knows what happened before; and tells nothing of what is no change to a sign-in, such as
// the times and failures that a directory writes down at each bind. Active Directory shows deleted entries to few: their deletion is told where
// the service account may see them.
func (c *Connector) Watch(ctx context.Context, f func(connectors.Change)) error {
	if c.settings.Watch == "off" {
		return ErrNoWatch
	}
	root, err := c.one(ctx, "", "supportedControl", "namingContexts")
	if err != nil {
		return err
	}
	if root == nil {
		return ErrNoWatch
	}
	w := &watch{c: c, persons: c.settings.personClasses(), seen: map[string]uint64{}, seed: maphash.MakeSeed(), pending: map[string]bool{}}
	switch controls := root.texts("supportedControl"); {
	case slices.Contains(controls, ldapv3.ControlTypeMicrosoftNotification):
		err = w.notification(ctx, root, f)
	case slices.Contains(controls, ldapv3.ControlTypeSyncRequest):
		err = w.sync(ctx, root, f)
	default:
		return ErrNoWatch
	}
	if ldapv3.IsErrorWithCode(err, ldapv3.LDAPResultUnavailableCriticalExtension) { // it offers the control to others only
		return fmt.Errorf("%w: %w", ErrNoWatch, err)
	}
	return err
}

// A watch is one search that does not end.
type watch struct {
	c       *Connector
	ad      bool
	persons []string // classes

	seed maphash.Seed
	seen map[string]uint64 // what mattered of an entry, by its id

	started  bool            // what comes now is new
	pending  map[string]bool // users to be told of, "" for everybody
	lastTold time.Time
}

// notification asks Active Directory to tell of changes (MS-ADTS section 3.1.1.3.4.1.9), which it does for the head of a naming context only.
func (w *watch) notification(ctx context.Context, root *entry, f func(connectors.Change)) error {
	w.ad = true
	attributes := slices.Concat(w.c.attributes, []string{"objectClass", "objectGUID", "isDeleted", "lockoutTime"})
	r := ldapv3.NewSearchRequest(w.c.policyBase(root), ldapv3.ScopeWholeSubtree, ldapv3.NeverDerefAliases, 0, 0, false, "(objectClass=*)", attributes,
		[]ldapv3.Control{ldapv3.NewControlMicrosoftNotification(), ldapv3.NewControlMicrosoftShowDeleted()})
	return w.c.client.service(ctx, func(l *ldapv3.Conn) error {
		return w.follow(ctx, l, f, func(ctx context.Context) (ldapv3.Response, <-chan error) {
			res := l.SearchAsync(ctx, r, 64)
			// The search is not answered until something changes: the answer to the next request means that it has arrived.
			began := make(chan error, 1)
			go func() {
				_, err := l.Search(ldapv3.NewSearchRequest("", ldapv3.ScopeBaseObject, ldapv3.NeverDerefAliases, 1, 0, false, "(objectClass=*)", []string{"1.1"}, nil))
				began <- err
			}()
			return res, began
		})
	})
}

// sync asks by RFC 4533 for what changes from now on: contextCSN says where OpenLDAP stands, and goes into the cookie with which a copy would
// ask for what it lacks. So nothing is sent of the entries that are there.
func (w *watch) sync(ctx context.Context, root *entry, f func(connectors.Change)) error {
	base := w.c.policyBase(root)
	attributes := slices.Concat(w.c.attributes, []string{"objectClass"})
	return w.c.client.service(ctx, func(l *ldapv3.Conn) error {
		// On the same connection: another server may stand elsewhere.
		head, err := l.Search(ldapv3.NewSearchRequest(base, ldapv3.ScopeBaseObject, ldapv3.NeverDerefAliases, 1, 0, false, "(objectClass=*)", []string{"contextCSN"}, nil))
		if err != nil {
			return cleanError(err)
		}
		if len(head.Entries) != 1 || len(head.Entries[0].GetAttributeValues("contextCSN")) == 0 {
			return fmt.Errorf("%w: %s has no contextCSN that the service account may read", ErrNoWatch, base)
		}
		cookie := "rid=000,csn=" + strings.Join(head.Entries[0].GetAttributeValues("contextCSN"), ";")
		r := ldapv3.NewSearchRequest(base, ldapv3.ScopeWholeSubtree, ldapv3.NeverDerefAliases, 0, 0, false, "(objectClass=*)", attributes, nil)
		return w.follow(ctx, l, f, func(ctx context.Context) (ldapv3.Response, <-chan error) {
			return l.Syncrepl(ctx, r, 64, ldapv3.SyncRequestModeRefreshAndPersist, []byte(cookie), false), nil
		})
	})
}

// errEnded means that a search has ended that should not.
var errEnded = errors.New("ldap: the directory has stopped telling of changes")

// follow tells of what a search finds until it ends. The channel, if there is one, says that the search has begun.
func (w *watch) follow(ctx context.Context, l *ldapv3.Conn, f func(connectors.Change), search func(context.Context) (ldapv3.Response, <-chan error)) error {
	ctx, cancel := context.WithCancel(ctx)
	res, began := search(ctx)
	found, ended := make(chan change), make(chan struct{})
	go func() {
		defer close(ended)
		read(ctx, res, found)
	}()
	defer func() {
		cancel()
		<-ended
	}()
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	for {
		select {
		case r := <-found:
			w.take(r)
			if time.Since(w.lastTold) >= tellEvery { // the first after a silence is told at once
				w.tell(f)
			}
		case err := <-began:
			if err != nil {
				return cleanError(err)
			}
			began = nil
			w.begin()
			w.tell(f)
		case <-tick.C:
			w.tell(f)
			if l.IsClosing() { // which a search that waits is not always told
				return errEnded
			}
		case <-ended:
			w.tell(f)
			if err := res.Err(); err != nil {
				return cleanError(err)
			}
			return errEnded
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// begin says that what comes from now on is new, and that nobody knows what was before.
func (w *watch) begin() {
	w.started = true
	w.pending[""] = true
}

// A change is what a search has found next.
type change struct {
	entry    *ldapv3.Entry
	controls []ldapv3.Control
}

func read(ctx context.Context, res ldapv3.Response, to chan<- change) {
	for res.Next() {
		select {
		case to <- change{res.Entry(), res.Controls()}:
		case <-ctx.Done():
			return
		}
	}
}

// tell tells of the changes that have come.
func (w *watch) tell(f func(connectors.Change)) {
	if len(w.pending) == 0 || !w.started {
		return
	}
	w.lastTold = time.Now()
	if w.pending[""] {
		f(connectors.Change{})
	} else {
		for id := range w.pending {
			f(connectors.Change{UserID: id})
		}
	}
	clear(w.pending)
}

// take takes what was found as a change of somebody, or of nobody.
func (w *watch) take(r change) {
	var key string
	deleted := false
	for _, control := range r.controls {
		switch s := control.(type) {
		case *ldapv3.ControlSyncState:
			key, deleted = string(s.EntryUUID[:]), s.State == ldapv3.SyncStateDelete
		case *ldapv3.ControlSyncInfo: // what was missed has come; from now on, each message is a change
			w.begin()
		}
	}
	if r.entry == nil {
		return
	}
	e, err := newEntry(r.entry)
	switch {
	case err != nil || deleted: // of somebody whose id is not told
		w.pending[""] = true
		return
	case w.ad:
		key = string(bytes.Join(e.raw("objectGUID"), nil))
	}
	id, person := w.whose(e)
	if person && w.news(key, e) || !person && (!w.ad || w.concernsAll(e, key)) {
		w.pending[id] = true
	}
	if len(w.pending) > tellSingly {
		clear(w.pending)
		w.pending[""] = true
	}
}

// personClasses are the classes of people's entries, in lower case: the usual ones, since not every server tells those that a class is derived
// from, and those that the configuration looks for. Entries of other classes concern everybody, groups above all.
func (s *settings) personClasses() []string {
	classes := []string{"person", "organizationalperson", "inetorgperson", "user", "account", "posixaccount", "shadowaccount"}
	groups := strings.ToLower(s.GroupSearch.Filter)
	for _, m := range classFilter.FindAllStringSubmatch(strings.ToLower(s.UserSearch.Filter), -1) {
		if !strings.Contains(groups, m[0]) {
			classes = append(classes, m[1])
		}
	}
	return classes
}

var classFilter = regexp.MustCompile(`\(objectclass=([a-z0-9.-]+)\)`) // never assigned to

// whose is the id of the user that an entry is, "" if that is not known.
func (w *watch) whose(e *entry) (id string, person bool) {
	person = slices.ContainsFunc(e.texts("objectClass"), func(class string) bool { return slices.Contains(w.persons, strings.ToLower(class)) })
	if !person || strings.EqualFold(e.text("isDeleted"), "TRUE") && isDN(w.c.settings.UserSearch.IDAttr) {
		return "", person
	}
	return e.value(w.c.settings.UserSearch.IDAttr, maxID), true
}

// concernsAll says that an entry of Active Directory is a group, or what accounts are named after. Much else changes there, such as computers'
// names, and is nobody's business.
func (w *watch) concernsAll(e *entry, key string) bool {
	for _, class := range e.texts("objectClass") {
		switch strings.ToLower(class) {
		case "group":
			return true
		case "organizationalunit", "container":
			return w.news(key, e)
		}
	}
	return false
}

// news says that something matters of what has changed of an entry. Each directory writes down when an account was last used, and how often
// with a wrong password: that is not asked for, so it makes no difference here.
func (w *watch) news(key string, e *entry) bool {
	var h maphash.Hash
	h.SetSeed(w.seed)
	_, _ = h.WriteString(e.dn)
	names := make([]string, 0, len(e.attributes))
	for name := range e.attributes {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		for _, v := range slices.SortedFunc(slices.Values(e.attributes[name]), bytes.Compare) {
			_, _ = h.WriteString("\x00" + name + "\x00" + hex.EncodeToString(v))
		}
	}
	sum := h.Sum64()
	if before, known := w.seen[key]; known && before == sum && key != "" {
		return false
	}
	if len(w.seen) >= watchedEntries {
		clear(w.seen)
	}
	w.seen[key] = sum
	return true
}
