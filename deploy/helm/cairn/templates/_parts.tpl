{{- define "cairn.name" -}}
{{- printf "%s-aggregator" .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "cairn.selector" -}}
app.kubernetes.io/name: cairn-aggregator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "cairn.labels" -}}
{{ include "cairn.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "cairn.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "cairn.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "cairn.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Settings; a variable goes before aggregator.toml, so that an upgrade of the chart is enough to change one. */}}
{{- define "cairn.environment" -}}
- {name: CAIRN_FEDERATION, value: {{ required "federation: only you can decide its name" .Values.federation | quote }}}
- {name: CAIRN_ADDRESSES, value: {{ .Values.addresses | toJson | squote }}}
- {name: CAIRN_DATABASE_FILE, value: /run/secrets/cairn/database/url}
{{- if .Values.pkiSecret }}
- {name: CAIRN_PKI_DIR, value: /run/secrets/cairn/pki}
{{- end }}
{{- if .Values.atRestSecret }}
- {name: CAIRN_AT_REST__KEY_FILE, value: /run/secrets/cairn/at-rest/key}
{{- end }}
{{- with .Values.blobs.url }}
- {name: CAIRN_BLOBS, value: {{ . | quote }}}
{{- end }}
{{- with .Values.blobs.endpoint }}
- {name: AWS_ENDPOINT_URL, value: {{ . | quote }}}
{{- end }}
{{- with .Values.blobs.credentialsSecret }}
- name: AWS_ACCESS_KEY_ID
  valueFrom: {secretKeyRef: {name: {{ . }}, key: access-key-id}}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ . }}, key: secret-access-key}}
{{- end }}
{{- with .Values.telemetry.otlp }}
- {name: CAIRN_TELEMETRY__OTLP, value: {{ . | quote }}}
{{- end }}
{{- range $name, $value := .Values.settings }}
- {name: {{ $name }}, value: {{ $value | toString | quote }}}
{{- end }}
{{- end -}}

{{- define "cairn.mounts" -}}
- {name: state, mountPath: /var/lib/cairn}
- {name: scratch, mountPath: /tmp}
- {name: database, mountPath: /run/secrets/cairn/database, readOnly: true}
{{- if .Values.pkiSecret }}
- {name: pki, mountPath: /run/secrets/cairn/pki, readOnly: true}
{{- end }}
{{- if .Values.atRestSecret }}
- {name: at-rest, mountPath: /run/secrets/cairn/at-rest, readOnly: true}
{{- end }}
{{- end -}}

{{- define "cairn.volumes" -}}
- {name: scratch, emptyDir: {sizeLimit: 1Gi}}
- {name: database, secret: {secretName: {{ .Values.databaseSecret }}, defaultMode: 0400}}
{{- if .Values.pkiSecret }}
- {name: pki, secret: {secretName: {{ .Values.pkiSecret }}, defaultMode: 0400}}
{{- end }}
{{- if .Values.atRestSecret }}
- {name: at-rest, secret: {secretName: {{ .Values.atRestSecret }}, defaultMode: 0400}}
{{- end }}
{{- end -}}
