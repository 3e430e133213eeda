{{- /* What the pods of the release have in common. All of it meets the pod security standard `restricted`. */ -}}
{{- define "cronplane.podBasics" -}}
{{- with include "cronplane.pullSecrets" . }}
{{ . }}
{{- end }}
enableServiceLinks: false
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- end -}}

{{- define "cronplane.containerBasics" -}}
image: {{ include "cronplane.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
terminationMessagePolicy: FallbackToLogsOnError
securityContext:
  {{- toYaml .Values.containerSecurityContext | nindent 2 }}
{{- end -}}

{{- /* Which nodes take a pod: `nodeSelector`, `tolerations`, `affinity` and `priorityClassName` of what is given. */ -}}
{{- define "cronplane.placement" -}}
{{- range $field := list "nodeSelector" "tolerations" "affinity" "priorityClassName" }}
{{- with get $ $field }}
{{ $field }}: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* Over nodes and zones where that can be: a cluster of one node takes all pods as well. */ -}}
{{- define "cronplane.spread" -}}
{{- $role := get .root.Values .component -}}
topologySpreadConstraints:
{{- with $role.topologySpreadConstraints }}
  {{- toYaml . | nindent 2 }}
{{- else }}
{{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    matchLabelKeys: [pod-template-hash]
    labelSelector:
      matchLabels:
        {{- include "cronplane.selector" $ | nindent 8 }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* The pods of a role that serves: `component` with its `settings`, `port`, time to end (`grace`), and secret `variables`. */ -}}
{{- define "cronplane.servicePod" -}}
{{- $role := get .root.Values .component -}}
metadata:
  labels:
    {{- include "cronplane.labels" . | nindent 4 }}
    {{- with $role.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    # New settings are taken up by new pods.
    checksum/settings: {{ .settings | sha256sum }}
    {{- with merge (dict) $role.podAnnotations .root.Values.commonAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "cronplane.serviceAccount" (dict "root" .root "role" .component) }}
  automountServiceAccountToken: true
  terminationGracePeriodSeconds: {{ .grace }}
  {{- include "cronplane.podBasics" .root | nindent 2 }}
  {{- include "cronplane.placement" $role | nindent 2 }}
  {{- include "cronplane.spread" . | nindent 2 }}
  containers:
    - name: {{ .component }}
      {{- include "cronplane.containerBasics" .root | nindent 6 }}
      args: [{{ .component }}]
      ports:
        - name: {{ .portName }}
          containerPort: {{ .port }}
      envFrom:
        - configMapRef:
            name: {{ include "cronplane.fullname" .root }}-{{ .component }}
        {{- with $role.extraEnvFrom }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      env:
        {{- .variables | nindent 8 }}
        {{- with $role.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- /* Whoever waits for the schema is live and not ready. */}}
      startupProbe:
        httpGet: {path: {{ .livePath }}, port: {{ .portName }}}
        periodSeconds: 2
        failureThreshold: 60
        timeoutSeconds: 5
      livenessProbe:
        httpGet: {path: {{ .livePath }}, port: {{ .portName }}}
        periodSeconds: 10
        timeoutSeconds: 5
      readinessProbe:
        httpGet: {path: /readyz, port: {{ .portName }}}
        periodSeconds: 5
        timeoutSeconds: 5
      {{- with .lifecycle }}
      lifecycle: {{ toJson . }}
      {{- end }}
      resources:
        {{- toYaml $role.resources | nindent 8 }}
      volumeMounts:
        - name: tmp
          mountPath: /tmp
        {{- with $role.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: tmp
      emptyDir: {}
    {{- with $role.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{- /* The pod of a Job of the release: `component` with its `arguments`, its `settings` (a map as YAML) and variables of
`secrets`; with an `account`, it has the rights of that. */ -}}
{{- define "cronplane.jobPod" -}}
metadata:
  labels:
    {{- include "cronplane.labels" . | nindent 4 }}
    {{- with .root.Values.jobs.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with merge (dict) .root.Values.jobs.podAnnotations .root.Values.commonAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- include "cronplane.jobPodSpec" . | nindent 2 }}
{{- end -}}

{{- define "cronplane.jobPodSpec" -}}
{{- $jobs := .root.Values.jobs -}}
restartPolicy: Never
{{- with .account }}
serviceAccountName: {{ . }}
{{- end }}
automountServiceAccountToken: {{ not (empty .account) }}
{{- include "cronplane.podBasics" .root }}
{{- include "cronplane.placement" $jobs }}
containers:
  - name: {{ .component }}
    {{- include "cronplane.containerBasics" .root | nindent 4 }}
    args: {{ toJson .arguments }}
    env:
      {{- include "cronplane.variables" (include "cronplane.commonSettings" .root) | trim | nindent 6 }}
      {{- include "cronplane.variables" .settings | trim | nindent 6 }}
      {{- with .secrets }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- with $jobs.extraEnv }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- with $jobs.extraEnvFrom }}
    envFrom:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    resources:
      {{- toYaml $jobs.resources | nindent 6 }}
    volumeMounts:
      - name: tmp
        mountPath: /tmp
      {{- with $jobs.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
volumes:
  - name: tmp
    emptyDir: {}
  {{- with $jobs.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- /* How such a Job ends: a pod that is taken away is made anew, and one that fails has failed. */ -}}
{{- define "cronplane.jobPolicy" -}}
backoffLimit: 0
podReplacementPolicy: Failed
podFailurePolicy:
  rules:
    - action: Ignore
      onPodConditions:
        - {type: DisruptionTarget, status: "True"}
{{- end -}}

{{- /* Of a hook that failed, the release knows nothing any more: its Job goes by itself, a day later. */ -}}
{{- define "cronplane.hookJobPolicy" -}}
{{ include "cronplane.jobPolicy" . }}
ttlSecondsAfterFinished: 86400
{{- end -}}

{{- /* Annotations of a hook: when (`events`), and in which order. A Job that failed stays, with its pod, to be looked at. */ -}}
{{- define "cronplane.hook" -}}
{{- dict "helm.sh/hook" .events "helm.sh/hook-weight" (toString .weight) "helm.sh/hook-delete-policy" "before-hook-creation,hook-succeeded" "helm.sh/hook-output-log-policy" "hook-failed,hook-succeeded" | toJson -}}
{{- end -}}

{{- /* The account of a hook, with its rights in each of `places`: a namespace, and the rules there. */ -}}
{{- define "cronplane.hookAccount" -}}
{{- $name := printf "%s-%s" (include "cronplane.fullname" .root) .component -}}
{{- $annotations := include "cronplane.hook" (dict "events" .events "weight" -20) | fromJson -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "cronplane.metadata" (dict "root" .root "component" .component "name" $name "annotations" $annotations) | nindent 2 }}
automountServiceAccountToken: false
{{- range .places }}
{{- $role := printf "%s-%s" (include "cronplane.clusterName" $.root) (.name | default $.component) }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  {{- include "cronplane.metadata" (dict "root" $.root "component" $.component "name" $role "namespace" .namespace "annotations" $annotations) | nindent 2 }}
rules:
  {{- toYaml .rules | nindent 2 }}
---
{{ include "cronplane.roleBinding" (dict "root" $.root "component" $.component "name" $role "namespace" .namespace "account" $name "annotations" $annotations) }}
{{- end }}
{{- end -}}

{{- define "cronplane.roleBinding" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ ternary "ClusterRoleBinding" "RoleBinding" (not (empty .clusterWide)) }}
metadata:
  {{- include "cronplane.metadata" . | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ ternary "ClusterRole" "Role" (not (empty .clusterWide)) }}
  name: {{ .name }}
subjects:
  - kind: ServiceAccount
    name: {{ .account }}
    namespace: {{ .root.Release.Namespace }}
{{- end -}}
