package main

import (
	"encoding/json"
	"net/netip"
)

type object = map[string]any

// envoyConfig returns the configuration of an Envoy with a listener at each server's origin. What is allowed is answered by
// Envoy itself: no app takes part.
func envoyConfig(servers []*server) ([]byte, error) {
	var listeners, clusters []any
	for _, s := range servers {
		l, err := listener(s)
		if err != nil {
			return nil, err
		}
		c, err := cluster(s)
		if err != nil {
			return nil, err
		}
		listeners, clusters = append(listeners, l), append(clusters, c)
	}
	return json.Marshal(object{"static_resources": object{"listeners": listeners, "clusters": clusters}})
}

// check configures the filter. An HTTP authorizer is asked for every path: it answers 200 to whom it knows, since it
// stands in front of an upstream that always does.
func check(s *server) object {
	filter := object{
		"@type":                 "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
		"transport_api_version": "V3",
		"status_on_error":       object{"code": 503},
	}
	if !s.plain {
		filter["grpc_service"] = object{"envoy_grpc": object{"cluster_name": s.name}, "timeout": "30s"} // as long as a run may hang
		return filter
	}
	filter["allowed_headers"] = object{"patterns": []any{object{"exact": "cookie"}, object{"prefix": "x-forwarded-"}}}
	filter["http_service"] = object{
		"server_uri":             object{"uri": "http://" + s.address, "cluster": s.name, "timeout": "2s"},
		"authorization_response": object{"allowed_upstream_headers": object{"patterns": []any{object{"prefix": "x-auth-request-"}}}},
	}
	return filter
}

func listener(s *server) (object, error) {
	at, err := address(s.origin)
	if err != nil {
		return nil, err
	}
	filters := []any{
		object{"name": "envoy.filters.http.ext_authz", "typed_config": check(s)},
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
	return object{"name": s.name, "address": at, "filter_chains": []any{object{"filters": []any{
		object{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager},
	}}}}, nil
}

func cluster(s *server) (object, error) {
	at, err := address(s.address)
	if err != nil {
		return nil, err
	}
	protocol := object{"http2_protocol_options": object{}}
	if s.plain {
		protocol = object{"http_protocol_options": object{}}
	}
	return object{
		"name": s.name, "type": "STATIC", "connect_timeout": "2s",
		"typed_extension_protocol_options": object{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": object{
			"@type":                "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
			"explicit_http_config": protocol,
		}},
		"load_assignment": object{"cluster_name": s.name, "endpoints": []any{object{"lb_endpoints": []any{
			object{"endpoint": object{"address": at}},
		}}}},
	}, nil
}

func address(hostPort string) (object, error) {
	a, err := netip.ParseAddrPort(hostPort)
	if err != nil {
		return nil, err
	}
	return object{"socket_address": object{"address": a.Addr().String(), "port_value": a.Port()}}, nil
}
