package fakeldap

import (
	"crypto/tls"
	"io"
	"net"

	ber "github.com/go-asn1-ber/asn1-ber"
	ldap "github.com/go-ldap/ldap/v3"
)

const startTLSID = "1.3.6.1.4.1.1466.20037"

// A session is one connection.
type session struct {
	*Server
	raw, conn net.Conn
	id        int
	bound     string
	secure    bool
}

func (c *session) handshake() error {
	t := tls.Server(c.conn, c.tls)
	if err := t.Handshake(); err != nil { //nolint:noctx // the connection is closed when the server ends
		return err
	}
	c.conn, c.secure = t, true
	c.note(func() { c.handshakes++ })
	return nil
}

// request reads and answers one message.
func (c *session) request() error {
	p, err := ber.ReadPacket(c.conn)
	if err != nil {
		return err
	}
	if c.muted() {
		_, err = io.Copy(io.Discard, c.conn)
		return err
	}
	if len(p.Children) < 2 {
		return errEnd
	}
	id, _ := p.Children[0].Value.(int64)
	op := p.Children[1]
	var controls []*ber.Packet
	if len(p.Children) > 2 {
		controls = p.Children[2].Children
	}
	switch op.Tag { //nolint:exhaustive // the tags of LDAP are others than those named
	case ldap.ApplicationBindRequest:
		return c.bind(id, op, controls)
	case ldap.ApplicationSearchRequest:
		return c.search(id, op, controls)
	case ldap.ApplicationUnbindRequest:
		return errEnd
	case ldap.ApplicationAbandonRequest:
		return nil
	}
	return c.other(id, op)
}

func (c *session) bind(id int64, op *ber.Packet, controls []*ber.Packet) error {
	b := Bind{Connection: c.id, Name: text(op.Children[1]), Secure: c.secure}
	b.password = op.Children[2].Data.String()
	b.Empty = b.password == ""
	for _, k := range controls {
		b.Policy = b.Policy || text(k.Children[0]) == ldap.ControlTypeBeheraPasswordPolicy
	}
	c.note(func() { kept := b; kept.password = ""; c.binds = append(c.binds, kept) })
	var a BindAnswer
	if c.o.Bind != nil {
		a = c.o.Bind(b)
	}
	switch {
	case a.Die:
		return errEnd
	case a.Hang:
		_, err := io.Copy(io.Discard, c.conn)
		return err
	case a.Code == 0:
		c.bound = b.Name
	}
	out := message(id, result(ldap.ApplicationBindResponse, a.Result))
	if a.Policy != nil {
		out.AppendChild(controlsOf(a.Policy.control()))
	}
	return c.write(out)
}

func (c *session) search(id int64, op *ber.Packet, controls []*ber.Packet) error {
	q := parse(op, controls)
	q.Connection, q.BoundAs = c.id, c.bound
	c.note(func() { c.searches = append(c.searches, q) })
	var a SearchAnswer
	if c.o.Search != nil {
		a = c.o.Search(q)
	}
	if a.Raw != nil {
		_, err := c.conn.Write(a.Raw)
		return err
	}
	for first := true; first || a.Flood; first = false {
		if err := c.entries(id, a); err != nil {
			return err
		}
	}
	for _, r := range a.References {
		ref := ber.Encode(ber.ClassApplication, ber.TypeConstructed, ldap.ApplicationSearchResultReference, nil, "")
		for _, u := range r {
			ref.AppendChild(octets(u))
		}
		if err := c.write(message(id, ref)); err != nil {
			return err
		}
	}
	if a.Hang {
		_, err := io.Copy(io.Discard, c.conn)
		return err
	}
	out := message(id, result(ldap.ApplicationSearchResultDone, a.Result))
	if a.Paged {
		page := ldap.NewControlPaging(0)
		page.SetCookie([]byte(a.Cookie))
		out.AppendChild(controlsOf(page.Encode()))
	}
	return c.write(out)
}

// entries sends the entries of an answer; with Die half of the last one.
func (c *session) entries(id int64, a SearchAnswer) error {
	for i, e := range a.Entries {
		out := message(id, e.packet())
		if a.Die && i == len(a.Entries)-1 {
			b := out.Bytes()
			_, _ = c.conn.Write(b[:len(b)/2])
			return errEnd
		}
		if err := c.write(out); err != nil {
			return err
		}
	}
	if a.Die {
		return errEnd
	}
	return nil
}

func (c *session) other(id int64, op *ber.Packet) error {
	o := Other{Connection: c.id, BoundAs: c.bound, Operation: int(op.Tag)}
	if len(op.Children) > 0 {
		o.Name = op.Children[0].Data.String()
	}
	c.note(func() { c.others = append(c.others, o) })
	answer := op.Tag + 1
	var r Result
	switch {
	case o.Name == startTLSID && c.o.Mode == StartTLS:
		if err := c.write(message(id, result(ldap.ApplicationExtendedResponse, r))); err != nil {
			return err
		}
		return c.handshake()
	case o.Name == startTLSID:
		r = Result{Code: ldap.LDAPResultProtocolError, Diagnostic: "unsupported extended operation"}
	case c.o.Other != nil:
		r = c.o.Other(o)
	}
	return c.write(message(id, result(answer, r)))
}

func (c *session) write(p *ber.Packet) error {
	_, err := c.conn.Write(p.Bytes())
	return err
}

func parse(op *ber.Packet, controls []*ber.Packet) Search {
	q := Search{Base: text(op.Children[0]), Scope: number(op.Children[1]), SizeLimit: number(op.Children[3]), PageSize: -1}
	q.Filter, _ = ldap.DecompileFilter(op.Children[6])
	for _, a := range op.Children[7].Children {
		q.Attributes = append(q.Attributes, text(a))
	}
	for _, k := range controls {
		if d, err := ldap.DecodeControl(k); err == nil {
			if page, ok := d.(*ldap.ControlPaging); ok {
				q.PageSize, q.Cookie = int(page.PagingSize), string(page.Cookie)
			}
		}
	}
	return q
}

func message(id int64, op *ber.Packet) *ber.Packet {
	p := ber.NewSequence("")
	p.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagInteger, id, ""))
	p.AppendChild(op)
	return p
}

func result(tag ber.Tag, r Result) *ber.Packet {
	p := ber.Encode(ber.ClassApplication, ber.TypeConstructed, tag, nil, "")
	p.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagEnumerated, r.Code, ""))
	p.AppendChild(octets(r.Matched))
	p.AppendChild(octets(r.Diagnostic))
	if len(r.Referral) > 0 {
		ref := ber.Encode(ber.ClassContext, ber.TypeConstructed, 3, nil, "")
		for _, u := range r.Referral {
			ref.AppendChild(octets(u))
		}
		p.AppendChild(ref)
	}
	return p
}

func (e Entry) packet() *ber.Packet {
	p := ber.Encode(ber.ClassApplication, ber.TypeConstructed, ldap.ApplicationSearchResultEntry, nil, "")
	p.AppendChild(octets(e.DN))
	as := ber.NewSequence("")
	for _, a := range e.Attributes {
		s := ber.NewSequence("")
		s.AppendChild(octets(a.Name))
		vs := ber.Encode(ber.ClassUniversal, ber.TypeConstructed, ber.TagSet, nil, "")
		for _, v := range a.Values {
			vs.AppendChild(octets(v))
		}
		s.AppendChild(vs)
		as.AppendChild(s)
	}
	p.AppendChild(as)
	return p
}

func (p *Policy) control() *ber.Packet {
	value := ber.NewSequence("")
	warning := ber.Encode(ber.ClassContext, ber.TypeConstructed, 0, nil, "")
	if p.Expire >= 0 {
		warning.AppendChild(ber.NewInteger(ber.ClassContext, ber.TypePrimitive, 0, p.Expire, ""))
	}
	if p.Grace >= 0 {
		warning.AppendChild(ber.NewInteger(ber.ClassContext, ber.TypePrimitive, 1, p.Grace, ""))
	}
	if len(warning.Children) > 0 {
		value.AppendChild(warning)
	}
	if p.Error >= 0 {
		value.AppendChild(ber.NewInteger(ber.ClassContext, ber.TypePrimitive, 1, p.Error, ""))
	}
	c := ber.NewSequence("")
	c.AppendChild(octets(ldap.ControlTypeBeheraPasswordPolicy))
	c.AppendChild(octets(string(value.Bytes())))
	return c
}

func controlsOf(c *ber.Packet) *ber.Packet {
	p := ber.Encode(ber.ClassContext, ber.TypeConstructed, 0, nil, "")
	p.AppendChild(c)
	return p
}

func octets(s string) *ber.Packet {
	return ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, s, "")
}

func text(p *ber.Packet) string { s, _ := p.Value.(string); return s }

func number(p *ber.Packet) int { n, _ := p.Value.(int64); return int(n) }
