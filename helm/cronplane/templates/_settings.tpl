{{- /* Variables of the processes. YAML's numbers are floating to Helm, and 1073741824 must not become 1.073741824e+09. */ -}}
{{- define "cronplane.text" -}}
{{- if or (kindIs "map" .) (kindIs "slice" .) -}}
{{- toJson . -}}
{{- else if and (kindIs "float64" .) (eq (floor .) .) -}}
{{- int64 . -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}

{{- define "cronplane.commonSettings" -}}
CRONPLANE_LOG_LEVEL: {{ .Values.log.level | quote }}
CRONPLANE_LOG_FORMAT: {{ .Values.log.format | quote }}
{{- end -}}

{{- /* What API and operator have in common, since both register crons. */ -}}
{{- define "cronplane.serviceSettings" -}}
{{ include "cronplane.commonSettings" . }}
{{- include "cronplane.typedSettings" .Values.registration }}
{{- include "cronplane.entrySettings" . }}
{{- end -}}

{{- define "cronplane.typedSettings" -}}
{{- range $name, $value := . }}
CRONPLANE_{{ $name | snakecase | upper }}: {{ include "cronplane.text" $value | quote }}
{{- end }}
{{- end -}}

{{- /* The settings of the entry `container` that stand with the runs. */ -}}
{{- define "cronplane.containerSettings" -}}
{{- $settings := dict -}}
{{- range $key, $value := dict "IMAGES" .Values.runs.allowedImages "LIMITS" .Values.runs.ceiling -}}
{{- if $value -}}
{{- $_ := set $settings $key $value -}}
{{- end -}}
{{- end -}}
{{- toJson $settings -}}
{{- end -}}

{{- /* Settings of entries, those of `container` among them that stand with the runs; secret ones are apart. */ -}}
{{- define "cronplane.entrySettings" -}}
{{- range $entry, $given := .Values.entries }}
{{- with $given }}
{{- with .execution }}
CRONPLANE_ENTRY_{{ upper $entry }}_EXECUTION: {{ . }}
{{- end }}
{{- range $key, $value := .settings }}
CRONPLANE_ENTRY_{{ upper $entry }}_{{ $key }}: {{ include "cronplane.text" $value | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- range $key, $value := include "cronplane.containerSettings" . | fromJson }}
CRONPLANE_ENTRY_CONTAINER_{{ $key }}: {{ toJson $value | quote }}
{{- end }}
{{- end -}}

{{- /* What a pod of a run is told of its entry: the same, without where entries run, as that is decided by then. In pods of
the profile `container` runs what tenants ask for: they are told nothing of anybody's entries. */ -}}
{{- define "cronplane.podProfiles" -}}
{{- $told := dict -}}
{{- range $entry, $given := .Values.entries -}}
{{- range $key, $value := ($given | default dict).settings -}}
{{- $_ := set $told (printf "CRONPLANE_ENTRY_%s_%s" (upper $entry) $key) (include "cronplane.text" $value) -}}
{{- end -}}
{{- end -}}
{{- $profiles := dict -}}
{{- range $name, $given := merge (dict) .Values.runs.profiles (dict "default" dict) -}}
{{- $profile := dict -}}
{{- range $key, $value := $given -}}
{{- $_ := set $profile (snakecase $key) $value -}}
{{- end -}}
{{- if ne $name "container" -}}
{{- $_ := set $profile "environment" (merge (dict) (get $profile "environment" | default dict) $told) -}}
{{- end -}}
{{- $_ := set $profiles $name $profile -}}
{{- end -}}
{{- toJson $profiles -}}
{{- end -}}

{{- define "cronplane.apiSettings" -}}
{{ include "cronplane.serviceSettings" . }}
CRONPLANE_HOST: "0.0.0.0"
CRONPLANE_PORT: "8080"
CRONPLANE_POD_ATTEMPTS: "true"
{{- include "cronplane.typedSettings" .Values.api.settings }}
{{- end -}}

{{- define "cronplane.operatorSettings" -}}
{{ include "cronplane.serviceSettings" . }}
CRONPLANE_METRICS_HOST: "0.0.0.0"
CRONPLANE_METRICS_PORT: "8081"
CRONPLANE_INSTALLATION: {{ include "cronplane.installation" . | quote }}
CRONPLANE_RELEASE_NAMESPACE: {{ .Release.Namespace | quote }}
CRONPLANE_NAMESPACES: {{ include "cronplane.namespaces" . | quote }}
CRONPLANE_RUN_IMAGE: {{ .Values.runs.image | default (include "cronplane.image" .) | quote }}
CRONPLANE_RUN_NAMESPACE: {{ include "cronplane.runNamespace" . | quote }}
CRONPLANE_RUN_SERVICE_ACCOUNT: {{ include "cronplane.runServiceAccount" . | quote }}
CRONPLANE_RUN_API_URL: {{ include "cronplane.apiUrl" . | quote }}
CRONPLANE_POD_PROFILES: {{ include "cronplane.podProfiles" . | quote }}
CRONPLANE_POD_START_TIMEOUT: {{ include "cronplane.text" .Values.runs.startTimeout | quote }}
CRONPLANE_POD_LAUNCHES: {{ include "cronplane.text" .Values.runs.launches | quote }}
{{- include "cronplane.typedSettings" .Values.operator.settings }}
{{- end -}}

{{- /* Settings, a map as YAML, as the variables of a container. */ -}}
{{- define "cronplane.variables" -}}
{{- range $name, $value := fromYaml . }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

{{- define "cronplane.secretVariable" -}}
- name: {{ .variable }}
  valueFrom:
    secretKeyRef:
      name: {{ .secret }}
      key: {{ .key }}
{{- end -}}

{{- /* What API and operator are told that is secret. */ -}}
{{- define "cronplane.serviceSecrets" -}}
{{ include "cronplane.secretVariable" (dict "variable" "CRONPLANE_DATABASE_URL" "secret" (include "cronplane.databaseSecret" .) "key" .Values.database.urlKey) }}
{{ include "cronplane.secretVariable" (dict "variable" "CRONPLANE_TOKEN_KEYS" "secret" (include "cronplane.installationSecret" .) "key" .Values.installation.tokenKeys) }}
{{- range $entry, $given := .Values.entries }}
{{- range $key, $secret := ($given | default dict).secrets }}
{{ include "cronplane.secretVariable" (dict "variable" (printf "CRONPLANE_ENTRY_%s_%s" (upper $entry) $key) "secret" $secret.name "key" $secret.key) }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "cronplane.installationKeyVariable" -}}
{{ include "cronplane.secretVariable" (dict "variable" "CRONPLANE_INSTALLATION_KEY" "secret" (include "cronplane.installationSecret" .) "key" .Values.installation.installationKey) }}
{{- end -}}
