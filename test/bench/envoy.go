package main

import (
	"context"
	"encoding/json"
	"net"
	"strconv"
)

type object = map[string]any

// envoyConfig returns the configuration of an Envoy with a listener for each server, and the listeners' origins. What is allowed
// is answered by Envoy itself: no app takes part.
func envoyConfig(ctx context.Context, children []*child) (text []byte, origins []string, err error) {
	var listeners, clusters []any
	for _, c := range children {
		port, err := freePort(ctx)
		if err != nil {
			return nil, nil, err
		}
		origins = append(origins, "http://127.0.0.1:"+strconv.Itoa(port))
		listeners = append(listeners, listener(c.name, port))
		cluster, err := cluster(c)
		if err != nil {
			return nil, nil, err
		}
		clusters = append(clusters, cluster)
	}
	text, err = json.Marshal(object{"static_resources": object{"listeners": listeners, "clusters": clusters}})
	return text, origins, err
}

func listener(name string, port int) object {
	filters := []any{
		object{"name": "envoy.filters.http.ext_authz", "typed_config": object{
			"@type":                 "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
			"transport_api_version": "V3",
			"status_on_error":       object{"code": 503},
			"grpc_service":          object{"envoy_grpc": object{"cluster_name": name}, "timeout": "2s"},
		}},
		object{"name": "envoy.filters.http.router", "typed_config": object{
			"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
		}},
	}
	manager := object{
		"@type":               "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
		"stat_prefix":         "bench",
		"generate_request_id": false,
		"normalize_path":      true,
		"merge_slashes":       true,
		"http_filters":        filters,
		"route_config": object{"virtual_hosts": []any{object{"name": "all", "domains": []any{"*"}, "routes": []any{
			object{"match": object{"prefix": "/"}, "direct_response": object{"status": 200, "body": object{"inline_string": "ok"}}},
		}}}},
	}
	return object{
		"name":    name,
		"address": address("127.0.0.1", port),
		"filter_chains": []any{object{"filters": []any{
			object{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager},
		}}},
	}
}

func cluster(c *child) (object, error) {
	name, portText, err := net.SplitHostPort(c.Address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		return nil, err
	}
	return object{
		"name": c.name, "type": "STATIC", "connect_timeout": "2s",
		"typed_extension_protocol_options": object{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": object{
			"@type":                "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
			"explicit_http_config": object{"http2_protocol_options": object{}},
		}},
		"load_assignment": object{"cluster_name": c.name, "endpoints": []any{object{"lb_endpoints": []any{
			object{"endpoint": object{"address": address(name, port)}},
		}}}},
	}, nil
}

func address(host string, port int) object {
	return object{"socket_address": object{"address": host, "port_value": port}}
}

// freePort returns a port of 127.0.0.1 that was free a moment ago.
func freePort(ctx context.Context) (int, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return 0, err
	}
	return n, l.Close()
}
