{{- define "mayfly.name" -}}
{{- if contains "mayfly" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-mayfly" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "mayfly.selector" -}}
app.kubernetes.io/name: mayfly
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "mayfly.metadata" -}}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "mayfly.selector" . | nindent 2 }}
  app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ .Release.Service }}
  helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "mayfly.embedded" -}}
{{- if eq .Values.config.ctlog.mode "embedded" }}yes{{ end }}
{{- end }}

{{- define "mayfly.marked" -}}
{{- if or (include "mayfly.embedded" .) .Values.config.revocation }}yes{{ end }}
{{- end }}

{{- define "mayfly.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "mayfly.name" .) }}
{{- end }}

{{/* The configuration: what the chart writes, over what values give. */}}
{{- define "mayfly.config" -}}
{{- $server := dict "http_address" "0.0.0.0:5555" "grpc_address" "0.0.0.0:5554" "metrics_address" "0.0.0.0:2112"
  "shutdown_delay" (printf "%ds" (int .Values.drain.delaySeconds)) "shutdown_grace" (printf "%ds" (int .Values.drain.graceSeconds)) }}
{{- $base := dict "audit" (dict "path" "/var/lib/mayfly/audit.jsonl") }}
{{- toYaml (mergeOverwrite $base (deepCopy .Values.config) (dict "server" $server)) }}
{{- end }}

{{- define "mayfly.container" -}}
image: {{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
resources:
  {{- toYaml .Values.resources | nindent 2 }}
{{- $env := .Values.extraEnv }}
{{- if .Values.extraCA.configMap }}{{ $env = append $env (dict "name" "SSL_CERT_DIR" "value" "/etc/mayfly/extra-ca") }}{{ end }}
{{- with $env }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  - {name: config, mountPath: /etc/mayfly/config, readOnly: true}
  - {name: data, mountPath: /var/lib/mayfly}
  {{- if include "mayfly.marked" . }}
  - {name: mark, mountPath: /var/lib/mayfly-mark}
  {{- end }}
  {{- range $name, $_ := .Values.secrets }}
  - {name: secret-{{ $name }}, mountPath: /etc/mayfly/{{ $name }}, readOnly: true}
  {{- end }}
  {{- range $name, $_ := .Values.configMaps }}
  - {name: configmap-{{ $name }}, mountPath: /etc/mayfly/{{ $name }}, readOnly: true}
  {{- end }}
  {{- if .Values.extraCA.configMap }}
  - {name: extra-ca, mountPath: /etc/mayfly/extra-ca, readOnly: true}
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "mayfly.claim" -}}
accessModes: [ReadWriteOnce]
{{- with .class }}
storageClassName: {{ . }}
{{- end }}
resources:
  requests: {storage: {{ .size }}}
{{- end }}
