{{- /* How many pods of a role may be taken away at once. One that does not work is no reason to keep a node. */ -}}
{{- define "cronplane.podDisruptionBudget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "cronplane.metadata" . | nindent 2 }}
spec:
  maxUnavailable: {{ (get .root.Values .component).podDisruptionBudget.maxUnavailable }}
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "cronplane.selector" . | nindent 6 }}
{{- end -}}
