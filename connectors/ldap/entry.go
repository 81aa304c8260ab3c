package ldap

import "strings"

// raw returns the values of an attribute as the directory sent them. The name is taken in any case.
func (e *entry) raw(name string) [][]byte { return e.attributes[strings.ToLower(name)] }

// text returns the first value of an attribute as a string, "" if it has none.
func (e *entry) text(name string) string {
	if v := e.raw(name); len(v) > 0 {
		return string(v[0])
	}
	return ""
}

// texts returns the values of an attribute as strings, nil if it has none. They are what the directory sent: nothing is known of their
// characters.
func (e *entry) texts(name string) []string {
	raw := e.raw(name)
	if len(raw) == 0 {
		return nil
	}
	out := make([]string, len(raw))
	for i, v := range raw {
		out[i] = string(v)
	}
	return out
}
