package provider

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"gatehouse/internal/config"
	"gatehouse/provider/store"

	dexconnectors "github.com/dexidp/dex/server/connectors"
)

// Each replica has a file of its own, and they change one after the other. So the first that reads another password of a user, or another
// secret of a client, marks it as the current one in the store. From then on what was given out before is over; a replica whose file
// is older takes neither the former secret nor the new one, until it has read its file.

// markTimeout is how long a reload waits until former secrets are refused everywhere. After a failure the new configuration is taken up all the same, and it
// is tried again.
const markTimeout = 2 * time.Second

func sameSecrets(a, b *config.Config) bool {
	return maps.Equal(clientPrints(a), clientPrints(b)) && maps.Equal(passwordPrints(a), passwordPrints(b))
}

// markBefore marks the secrets of a configuration that is about to become the current one.
func (p *Provider) markBefore(old, next *config.Config) {
	if sameSecrets(old, next) {
		return
	}
	ctx, cancel := context.WithTimeout(p.life, markTimeout)
	defer cancel()
	err := p.markSecrets(ctx, old, true) // there are some already, unless Reconcile could not be
	if err == nil {
		err = p.markSecrets(ctx, next, false)
	}
	if err != nil {
		p.log.ErrorContext(ctx, "changed secrets could not be stored; it is tried again", "error", err)
	}
}

// reconcileSecrets makes the secrets of a configuration the current ones, and ends what was given out under others.
func (p *Provider) reconcileSecrets(ctx context.Context, c *config.Config) error {
	p.secrets.Lock()
	defer p.secrets.Unlock()
	errs := []error{p.markSecrets(ctx, c, false)}
	if errs[0] != nil && !store.OnlyUnread(errs[0]) {
		return errs[0]
	}
	for m, err := range p.store.Marks(ctx) {
		if store.OnlyUnread(err) { // told above; what it is about is refused
			continue
		}
		if err != nil {
			return errors.Join(append(errs, fmt.Errorf("provider: list marks: %w", err))...)
		}
		if !m.Pending {
			continue
		}
		if err := p.endMarked(ctx, m); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, p.store.SettleMark(ctx, m))
	}
	return errors.Join(errs...)
}

// markSecrets marks what a configuration says and what it says no more. With first it only makes marks where there are none.
func (p *Provider) markSecrets(ctx context.Context, c *config.Config, first bool) error {
	want := map[string]map[string]string{store.MarkClient: clientPrints(c), store.MarkPassword: passwordPrints(c)}
	var changed []store.Mark
	var unread store.Unreads
	for m, err := range p.store.Marks(ctx) {
		if unread.Add(err) { // it stays, and its secret is refused
			continue
		}
		if err != nil {
			return fmt.Errorf("provider: list marks: %w", err)
		}
		if want[m.About] == nil { // of a newer Gatehouse
			continue
		}
		if secretPrint := want[m.About][m.ID]; secretPrint != m.Print && !first { // "" where it is gone
			changed = append(changed, store.Mark{About: m.About, ID: m.ID, Print: secretPrint})
		}
		delete(want[m.About], m.ID)
	}
	for _, m := range changed {
		if _, err := p.store.SetMark(ctx, m.About, m.ID, m.Print, p.now()); err != nil {
			return fmt.Errorf("provider: store mark: %w", err)
		}
	}
	var fresh []store.Mark
	for about, prints := range want {
		for id, secretPrint := range prints {
			fresh = append(fresh, store.Mark{About: about, ID: id, Print: secretPrint})
		}
	}
	if err := p.store.CreateMarks(ctx, fresh); err != nil {
		return fmt.Errorf("provider: store marks: %w", err)
	}
	return wrapped("list marks", unread.Err())
}

// endMarked ends what was given out before a mark.
func (p *Provider) endMarked(ctx context.Context, m store.Mark) error {
	gone := m.Print == ""
	switch m.About {
	case store.MarkClient:
		if err := p.store.DeleteOf(ctx, m.ID); err != nil {
			return fmt.Errorf("provider: revoke what client %q has: %w", m.ID, err)
		}
		p.audit.InfoContext(ctx, "client cut off", "by", byFile, "client", m.ID, "removed", gone)
	case store.MarkPassword:
		g := p.acquire()
		defer g.release()
		ended, err := p.endSessions(ctx, g, dexconnectors.LocalConnector, m.ID, cause{by: byFile}, ending{until: m.Since})
		if err != nil {
			return err
		}
		p.audit.InfoContext(ctx, "password changed", "by", byFile, "connector", dexconnectors.LocalConnector, "user_id", m.ID, "removed", gone, "sessions", ended)
	}
	return nil
}
