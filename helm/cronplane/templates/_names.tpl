{{- /* What things are called. A name of the cluster is told apart by the namespace of the release. */ -}}

{{- define "cronplane.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "cronplane.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "cronplane.fullname" .) -}}
{{- end -}}

{{- /* The name by which resources in other namespaces know the installation; a label's value, so 63 characters at most. */ -}}
{{- define "cronplane.installation" -}}
{{- $name := include "cronplane.clusterName" . -}}
{{- if .Values.installation.name -}}
{{- .Values.installation.name -}}
{{- else if gt (len $name) 63 -}}
{{- printf "%s-%s" ($name | trunc 54) ($name | sha256sum | trunc 8) -}}
{{- else -}}
{{- $name -}}
{{- end -}}
{{- end -}}

{{- define "cronplane.runNamespace" -}}
{{- .Values.runs.namespace | default .Release.Namespace -}}
{{- end -}}

{{- define "cronplane.serviceAccount" -}}
{{- $own := (get .root.Values .role).serviceAccount.name -}}
{{- $own | default (printf "%s-%s" (include "cronplane.fullname" .root) .role) -}}
{{- end -}}

{{- define "cronplane.runServiceAccount" -}}
{{- .Values.runs.serviceAccount.name | default (printf "%s-run" (include "cronplane.fullname" .)) -}}
{{- end -}}

{{- define "cronplane.installationSecret" -}}
{{- .Values.installation.existingSecret | default (printf "%s-installation" (include "cronplane.fullname" .)) -}}
{{- end -}}

{{- define "cronplane.hasBuiltInDatabase" -}}
{{- if not (or .Values.database.existingSecret .Values.database.url) }}true{{ end -}}
{{- end -}}

{{- /* The Secret of the built-in PostgreSQL is made by a Job; that of addresses in values is the chart's own. */ -}}
{{- define "cronplane.databaseSecret" -}}
{{- if .Values.database.existingSecret -}}
{{- .Values.database.existingSecret -}}
{{- else if .Values.database.url -}}
{{- include "cronplane.fullname" . }}-database-url
{{- else -}}
{{- include "cronplane.fullname" . }}-database
{{- end -}}
{{- end -}}

{{- define "cronplane.ownerSecret" -}}
{{- if .Values.database.ownerExistingSecret -}}
{{- .Values.database.ownerExistingSecret -}}
{{- else if and .Values.database.url (not .Values.database.existingSecret) -}}
{{- include "cronplane.fullname" . }}-database-owner-url
{{- else -}}
{{- include "cronplane.databaseSecret" . -}}
{{- end -}}
{{- end -}}

{{- define "cronplane.apiUrl" -}}
http://{{ include "cronplane.fullname" . }}-api.{{ .Release.Namespace }}.svc:{{ .Values.api.service.port }}
{{- end -}}

{{- define "cronplane.image" -}}
{{- $registry := .Values.global.imageRegistry | default .Values.image.registry -}}
{{- $name := ternary (printf "%s/%s" $registry .Values.image.repository) .Values.image.repository (ne $registry "") -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $name .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "cronplane.pullSecrets" -}}
{{- with concat .Values.global.imagePullSecrets .Values.image.pullSecrets | uniq -}}
imagePullSecrets:
{{ toYaml . }}
{{- end -}}
{{- end -}}

{{- /* By these a pod is found; they never change. */ -}}
{{- define "cronplane.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "cronplane.labels" -}}
{{ include "cronplane.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* name, labels and annotations: `component` of `root`, called `name`, in `namespace`, with further `labels` and
`annotations`. */ -}}
{{- define "cronplane.metadata" -}}
name: {{ .name }}
{{- if not .clusterWide }}
namespace: {{ .namespace | default .root.Release.Namespace }}
{{- end }}
labels:
  {{- include "cronplane.labels" . | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (.annotations | default dict) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
