{{- define "gatehouse.metadata" -}}
name: gatehouse
namespace: {{ include "gatehouse.namespace" . }}
labels: {app.kubernetes.io/name: gatehouse}
{{- end }}

{{- /* Not empty where replicas share their storage, and need no volume. */ -}}
{{- define "gatehouse.shared" -}}
{{ if ne .Values.config.storage.type "sqlite" }}yes{{ end }}
{{- end }}

{{- /* The name of a URL or of an entry of gateway.hosts, without scheme, path and port; and the port, 443 without one. */ -}}
{{- define "gatehouse.host" -}}
{{ . | lower | regexFind "^(https?://)?[^/:]+" | trimPrefix "https://" | trimPrefix "http://" }}
{{- end }}

{{- define "gatehouse.port" -}}
{{ regexReplaceAll "^(https?://)?[^/:]+(:([0-9]+))?(/.*)?$" . "${3}" | default "443" }}
{{- end }}

{{- define "gatehouse.issuerHost" -}}
{{ include "gatehouse.host" .Values.config.issuer }}
{{- end }}

{{- define "gatehouse.issuerPath" -}}
{{ (urlParse .Values.config.issuer).path }}
{{- end }}

{{- /* No default in values.yaml: Helm would add it to the operator's labels, no gateway has both, and nothing would be checked. */ -}}
{{- define "gatehouse.gatewayLabels" -}}
{{ toYaml (default (dict "istio" "ingressgateway") .Values.istio.gatewayLabels) }}
{{- end }}

{{- define "gatehouse.target" -}}
- {group: gateway.networking.k8s.io, kind: Gateway, name: gatehouse}
{{- end }}

{{- /* The patch of deploy/overlays/istio/hardened-gateway.yaml, where the reasons are. */ -}}
{{- define "gatehouse.hardening" -}}
- applyTo: NETWORK_FILTER
  match:
    context: GATEWAY
    listener: {filterChain: {filter: {name: envoy.filters.network.http_connection_manager}}}
  patch:
    operation: MERGE
    value:
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        normalize_path: true
        merge_slashes: true
        path_with_escaped_slashes_action: REJECT_REQUEST
        internal_address_config: {}
        max_request_headers_kb: 60
        request_headers_timeout: 10s
        common_http_protocol_options:
          max_headers_count: 100
          headers_with_underscores_action: REJECT_REQUEST
        http2_protocol_options:
          max_concurrent_streams: 100
{{- end }}

{{- define "gatehouse.namespace" -}}
{{- include "gatehouse.check" . -}}
{{ .Release.Namespace }}
{{- end }}

{{- /* What the schema cannot say. Every object asks, so nothing is applied before it holds. */ -}}
{{- define "gatehouse.check" -}}
{{- if and (hasPrefix "istio" .Values.provider) (ne .Release.Namespace .Values.istio.rootNamespace) -}}
{{- fail (printf "the release is in namespace %q, want %q (helm install -n): elsewhere Istio would not find the gateway by the policy's selector, and nothing would be checked" .Release.Namespace .Values.istio.rootNamespace) -}}
{{- end -}}
{{- if not (or (get .Values.config "staticPasswords") (get .Values.config "connectors")) -}}
{{- fail "nobody could sign in: name users in config.staticPasswords, or connectors in config.connectors" -}}
{{- end -}}
{{- $issuer := include "gatehouse.issuerHost" . -}}
{{- $listeners := not (hasPrefix "istio" .Values.provider) -}}
{{- range $i, $entry := .Values.config.gateway.hosts -}}
{{- $host := include "gatehouse.host" $entry -}}
{{- if and (hasPrefix "*." $host) (hasSuffix (trimPrefix "*" $host) $issuer) -}}
{{- fail (printf "config.gateway.hosts[%d]: %q covers the issuer's host %s: a route of an app's namespace could take over the sign-in pages; list the apps by name, or by a wildcard beside the issuer, such as \"*.apps.example.com\"" $i $host $issuer) -}}
{{- end -}}
{{- if and $listeners (eq $host $issuer) -}}
{{- fail (printf "config.gateway.hosts[%d]: %s is the issuer's host, whose listener is for the sign-in pages alone: give the issuer a host of its own" $i $host) -}}
{{- end -}}
{{- if and $listeners (hasPrefix "http://" $entry) -}}
{{- fail (printf "config.gateway.hosts[%d]: %s: the Gateway of this chart serves https: take http:// away" $i $entry) -}}
{{- end -}}
{{- end -}}
{{- end }}
