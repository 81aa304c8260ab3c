package config

import (
	"reflect"

	"go.yaml.in/yaml/v3"
)

// AdminListener reads gateway.admin, and nothing else, from the file at path: the arguments of net.Dial for the admin
// listener of the gatehouse that runs with that file. Whoever has to end a session now can do so while the file has
// mistakes, or names variables that only the running process has. About gateway.admin itself it is as strict as Load.
func AdminListener(path string, opts Options) (network, address string, err error) {
	opts = opts.withDefaults()
	data, err := opts.ReadFile(path)
	if err != nil {
		return "", "", Errors{{File: path, Msg: fileProblem(err)}}
	}
	r := newReport(path)
	root := r.document(data)
	if root == nil {
		errs, _ := r.sorted()
		return "", "", errs
	}
	g := new(Gateway)
	g.setDefaults()
	d := &decoder{report: r, env: opts.Lookup}
	block := lookup(root, "gateway")
	if block == nil || isNull(block) {
		return "", "", Errors{{File: path, Msg: "has no gateway block, so there is no admin listener"}}
	}
	if block.Kind != yaml.MappingNode {
		d.errorf("gateway", "want a block of keys, got %s", kindOf(block))
	}
	if n := lookup(block, "admin"); n != nil {
		d.decode(n, reflect.ValueOf(&g.Admin).Elem(), "gateway.admin")
	}
	(&checker{decoder: d, opts: opts, c: &Config{Gateway: g}}).admin(g)
	errs, _ := r.sorted()
	var mine Errors
	for _, e := range errs {
		if e.Path == "gateway" || e.Path == "gateway.admin" {
			mine = append(mine, e)
		}
	}
	if len(mine) > 0 {
		return "", "", mine
	}
	network, address = g.AdminListener()
	return network, address, nil
}
