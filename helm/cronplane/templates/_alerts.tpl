{{- /* What to be woken by, by the alert's name; docs/runbook.md has a section for each. `of` picks the metrics of this release. */ -}}
{{- define "cronplane.alerts" -}}
CronplaneHasNoLeader:
  expr: min(cronplane_leader_age_seconds{{ .of }}) > 30 or absent(cronplane_leader_age_seconds{{ .of }})
  severity: critical
  summary: No runner fires.
CronplaneClaimsLate:
  expr: max(cronplane_next_fire_lag_seconds{{ .of }}) > 30
  severity: critical
  summary: Fires are due and nobody claims them.
CronplaneGuaranteeViolated:
  expr: max by (kind) (cronplane_violations{{ .of }} and on (instance) cronplane_leader{{ .of }} == 1) > 0
  severity: critical
  summary: A fire is not accounted for exactly once.
CronplaneDatabaseAway:
  expr: max(cronplane_database_up{{ .of }}) == 0
  for: 1m
  severity: critical
  summary: PostgreSQL answers none of the processes.
CronplaneDoesNotScan:
  expr: >-
    max(time() - cronplane_scan_timestamp_seconds{{ .of }}) by (instance) > 1800
    and on (instance) min_over_time(cronplane_leader{{ .of }}[30m]) == 1
  severity: warning
  summary: The leader has not checked the record for half an hour.
CronplaneStartsLate:
  expr: histogram_quantile(0.99, sum by (le) (rate(cronplane_start_lag_seconds_bucket{{ .of }}[5m]))) > 10
  for: 5m
  severity: warning
  summary: One run of a hundred starts more than 10 s late.
CronplaneTermsFail:
  expr: sum(increase(cronplane_term_failures_total{{ .of }}[15m])) > 0
  severity: warning
  summary: A defect of Cronplane has ended a leader's term.
CronplaneWatchEnds:
  expr: sum(increase(cronplane_watch_ends_total{{ .of }}[15m])) > 5
  severity: warning
  summary: The operator does not get to watch the cluster; what kubectl shows is old.
{{- end -}}
