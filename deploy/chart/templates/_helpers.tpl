{{- define "gatehouse.metadata" -}}
name: gatehouse
namespace: {{ include "gatehouse.namespace" . }}
labels: {app.kubernetes.io/name: gatehouse}
{{- end }}

{{- define "gatehouse.issuerHost" -}}
{{ regexReplaceAll ":[0-9]+$" (urlParse .Values.config.issuer).host "" }}
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
{{- if and (hasPrefix "istio" .Values.provider) (ne .Release.Namespace .Values.istio.rootNamespace) -}}
{{- fail (printf "the release is in namespace %q, want %q (helm install -n): elsewhere Istio would not find the gateway by the policy's selector, and nothing would be checked" .Release.Namespace .Values.istio.rootNamespace) -}}
{{- end -}}
{{ .Release.Namespace }}
{{- end }}
