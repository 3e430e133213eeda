{{- /* The organizations that values declare, or the one that there is if they declare none, as JSON by name. */ -}}
{{- define "cronplane.organizations" -}}
{{- .Values.organizations | default (dict "default" (dict "namespaces" (list .Release.Namespace))) | toJson -}}
{{- end -}}

{{- /* Namespaces and the names of their organizations, as a JSON object. */ -}}
{{- define "cronplane.namespaces" -}}
{{- $mapped := dict -}}
{{- range $organization, $declared := include "cronplane.organizations" . | fromJson -}}
{{- range $namespace := ($declared | default dict).namespaces -}}
{{- if hasKey $mapped $namespace -}}
{{- fail (printf "organizations: the namespace %s belongs to both %s and %s; give it to one of them" $namespace (get $mapped $namespace) $organization) -}}
{{- end -}}
{{- $_ := set $mapped $namespace $organization -}}
{{- end -}}
{{- end -}}
{{- toJson $mapped -}}
{{- end -}}

{{- /* What the migration makes of the organizations; `default` and `every` are null there, and what is left out stays. */ -}}
{{- define "cronplane.declaredOrganizations" -}}
{{- $declared := dict -}}
{{- $names := dict "entrypoints" "entrypoints" "cronQuota" "cron_quota" "triggersPerMinute" "triggers_per_minute" -}}
{{- range $organization, $given := include "cronplane.organizations" . | fromJson -}}
{{- $asked := dict -}}
{{- range $key, $name := $names -}}
{{- if hasKey ($given | default dict) $key -}}
{{- $value := get $given $key -}}
{{- if kindIs "string" $value -}}
{{- $_ := set $asked $name nil -}}
{{- else if kindIs "float64" $value -}}
{{- $_ := set $asked $name (int64 $value) -}}
{{- else -}}
{{- $_ := set $asked $name $value -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $_ := set $declared $organization $asked -}}
{{- end -}}
{{- toJson $declared -}}
{{- end -}}

{{- /* The organization of `helm test`: unless it is named, the first by name that may use `dummy_print`, if there is one. */ -}}
{{- define "cronplane.selftestOrganization" -}}
{{- $known := include "cronplane.organizations" . | fromJson -}}
{{- $able := list -}}
{{- range $organization, $given := $known -}}
{{- $entrypoints := ($given | default dict).entrypoints | default "every" -}}
{{- if or (kindIs "string" $entrypoints) (has "dummy_print" $entrypoints) -}}
{{- $able = append $able $organization -}}
{{- end -}}
{{- end -}}
{{- $name := .Values.selftest.organization | default (first (concat $able (keys $known | sortAlpha))) -}}
{{- if not (hasKey $known $name) -}}
{{- fail (printf "selftest.organization: there is no organization %s; name one of %s" $name (keys $known | sortAlpha | join ", ")) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{- define "cronplane.selftestNamespace" -}}
{{- $organization := get (include "cronplane.organizations" . | fromJson) (include "cronplane.selftestOrganization" .) -}}
{{- ($organization | default dict).namespaces | default (list .Release.Namespace) | sortAlpha | first -}}
{{- end -}}
