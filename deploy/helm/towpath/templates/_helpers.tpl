{{- define "towpath.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What objects of one part are chosen by: (list . "gateway") */}}
{{- define "towpath.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: towpath
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "towpath.labels" -}}
{{- $root := index . 0 -}}
{{ include "towpath.selector" . }}
app.kubernetes.io/part-of: towpath
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "towpath.serviceAccount" -}}
{{- default (ternary (include "towpath.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "towpath.proxyImage" -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}

{{/* Where proxies find the control plane. */}}
{{- define "towpath.controlPlane" -}}
{{ include "towpath.fullname" . }}-control-plane.{{ .Release.Namespace }}.svc:18000
{{- end -}}

{{/* Whatever the `restricted` Pod Security Standard asks for, and no root file system to write to. */}}
{{- define "towpath.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1802
runAsGroup: 1802
fsGroup: 1802
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "towpath.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Bodies may take seven eighths of the gateway's folder; the rest is for the configuration. */}}
{{- define "towpath.spool" -}}
{{- $size := .Values.gateway.spool.size -}}
{{- $number := regexFind "^[0-9]+" $size | int64 -}}
{{- $mebi := ternary $number (mul $number 1024) (hasSuffix "Mi" $size) -}}
{{ div (mul $mebi 7) 8 }}MiB
{{- end -}}

{{- define "towpath.webhookSecret" -}}
{{- if eq .Values.webhook.certificates "provided" -}}
{{ .Values.webhook.provided.secret }}
{{- else -}}
{{ include "towpath.fullname" . }}-webhook
{{- end -}}
{{- end -}}
