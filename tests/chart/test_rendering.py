"""What each set of values makes, and what it does not."""

import json
import re
from typing import Any

import pytest
import yaml

from tests.chart.rendering import (
    ADDRESSES,
    CHART,
    EVERYTHING,
    NAMESPACE,
    OUTSIDE,
    ROLE_EXTRAS,
    Document,
    Manifests,
    render,
    variables,
)

API, OPERATOR, DATABASE = "rel-cronplane-api", "rel-cronplane-operator", "rel-cronplane-database"
CREDENTIALS, UNINSTALL, SELFTEST = "rel-cronplane-credentials", "rel-cronplane-uninstall", "rel-cronplane-selftest"


def migration(manifests: Manifests) -> Document:
    [found] = [each for each in manifests if each["metadata"]["name"].startswith("rel-cronplane-migration")]
    return found


def is_hook(document: Document) -> bool:
    return "helm.sh/hook" in document["metadata"].get("annotations", {})


def container(manifests: Manifests, name: str) -> Document:
    [found] = manifests.pod(name)["containers"]
    return dict(found)


def settings(manifests: Manifests, name: str) -> dict[str, str]:
    return dict(manifests.one("ConfigMap", name)["data"])


def declared(manifests: Manifests) -> Any:
    return json.loads(
        variables(migration(manifests)["spec"]["template"]["spec"]["containers"][0])["CRONPLANE_ORGANIZATIONS"]
    )


def test_by_default_there_are_two_of_each_role_a_database_and_nothing_that_was_not_asked_for() -> None:
    made = render({})
    assert made.names("Deployment") == [API, OPERATOR]
    assert {each["spec"]["replicas"] for each in made if each["kind"] == "Deployment"} == {2}
    assert made.names("StatefulSet") == [DATABASE]
    assert made.names("PodDisruptionBudget") == [API, OPERATOR]
    assert {each["kind"] for each in made} & {
        "Ingress",
        "HTTPRoute",
        "HorizontalPodAutoscaler",
        "ServiceMonitor",
        "PrometheusRule",
        "Secret",
    } == set()


def test_the_roles_are_told_where_the_database_and_their_keys_are_and_hold_none_themselves() -> None:
    made = render({})
    told = variables(container(made, API))
    assert told["CRONPLANE_DATABASE_URL"] == (DATABASE, "url")
    assert told["CRONPLANE_INSTALLATION_KEY"] == ("rel-cronplane-installation", "installation-key")
    assert told["CRONPLANE_TOKEN_KEYS"] == ("rel-cronplane-installation", "token-keys")
    assert variables(container(made, OPERATOR)).keys() == {"CRONPLANE_DATABASE_URL", "CRONPLANE_TOKEN_KEYS"}
    assert "postgresql://" not in json.dumps([settings(made, API), settings(made, OPERATOR)])


def test_passwords_are_made_by_a_hook_before_anything_needs_them() -> None:
    job = render({}).one("Job", CREDENTIALS)
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    [told] = job["spec"]["template"]["spec"]["containers"]
    asked = {each["name"]: each["keys"] for each in json.loads(variables(told)["CRONPLANE_CREDENTIALS"])}
    assert asked == {
        "rel-cronplane-installation": {
            "installation-key": {"generate": "password"},
            "token-keys": {"generate": "token-keys"},
        },
        DATABASE: {
            "owner-password": {"generate": "password"},
            "service-password": {"generate": "password"},
            "owner-url": {"template": f"postgresql://cronplane:{{owner-password}}@{DATABASE}:5432/cronplane"},
            "url": {"template": f"postgresql://cronplane_service:{{service-password}}@{DATABASE}:5432/cronplane"},
        },
    }


def test_accounts_of_hooks_come_before_their_jobs_and_nothing_of_a_hook_that_succeeded_stays() -> None:
    hooks = [each for each in render(OUTSIDE) if is_hook(each)]
    weights = {kind: set[int]() for kind in ("ServiceAccount", "Role", "RoleBinding", "Job", "Pod")}
    for each in hooks:
        annotations = each["metadata"]["annotations"]
        weights[each["kind"]].add(int(annotations["helm.sh/hook-weight"]))
        assert annotations["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded"
    accounts = weights["ServiceAccount"] | weights["Role"] | weights["RoleBinding"]
    assert max(accounts) < min(weights["Job"] | weights["Pod"])


def test_the_built_in_database_is_migrated_by_an_ordinary_job_that_is_another_one_when_it_does_something_else() -> None:
    made = migration(render({}))
    assert not is_hook(made)
    assert migration(render({"api": {"replicas": 3}})) == made
    others: list[Document] = [
        {"image": {"tag": "next"}},
        {"organizations": {"acme": {}}},
        {"commonLabels": {"team": "a"}},
    ]
    names = {migration(render(values))["metadata"]["name"] for values in ({}, *others)}
    assert len(names) == 4


def test_a_job_of_a_hook_that_failed_goes_by_itself_and_one_of_the_release_with_the_release() -> None:
    jobs = [each for values in ({}, OUTSIDE) for each in render(values) if each["kind"] == "Job"]
    assert {(is_hook(each), each["spec"].get("ttlSecondsAfterFinished")) for each in jobs} == {
        (True, 86400),
        (False, None),
    }


@pytest.mark.parametrize("values", [OUTSIDE, ADDRESSES], ids=["secret", "addresses"])
def test_a_database_of_ones_own_is_migrated_by_a_hook_and_none_is_brought(values: Document) -> None:
    made = render(values)
    annotations = migration(made)["metadata"]["annotations"]
    assert annotations["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert "hook-failed" in annotations["helm.sh/hook-output-log-policy"]
    assert made.names("StatefulSet") == []
    assert DATABASE not in made.names("Service") + made.names("NetworkPolicy")


def test_of_a_given_secret_each_role_reads_its_own_key_and_nobody_makes_another() -> None:
    values = {
        "database": {"existingSecret": "service", "urlKey": "uri", "ownerExistingSecret": "owner", "ownerUrlKey": "uri"}
    }
    made = render(values)
    assert variables(container(made, API))["CRONPLANE_DATABASE_URL"] == ("service", "uri")
    [told] = migration(made)["spec"]["template"]["spec"]["containers"]
    assert variables(told)["CRONPLANE_OWNER_DATABASE_URL"] == ("owner", "uri")
    assert made.names("Secret") == []


def test_the_owners_address_is_kept_for_the_migration_alone() -> None:
    made = render(ADDRESSES)
    service, owner = made.one("Secret", f"{DATABASE}-url"), made.one("Secret", f"{DATABASE}-owner-url")
    assert (service["stringData"], is_hook(service)) == ({"url": "postgresql://s@db/c"}, False)
    assert (owner["stringData"], is_hook(owner)) == ({"owner-url": "postgresql://o@db/c"}, True)


def test_with_secrets_of_ones_own_no_job_makes_any() -> None:
    made = render(
        OUTSIDE | {"installation": {"existingSecret": "ours", "installationKey": "key", "tokenKeys": "tokens"}}
    )
    assert CREDENTIALS not in made.names("Job") + made.names("ServiceAccount")
    told = variables(container(made, API))
    assert (told["CRONPLANE_INSTALLATION_KEY"], told["CRONPLANE_TOKEN_KEYS"]) == (("ours", "key"), ("ours", "tokens"))


def test_who_migrates_by_hand_gets_no_migration() -> None:
    made = render(OUTSIDE | {"migrations": {"enabled": False}})
    assert [name for name in made.names("Job") if "migration" in name] == []


def test_without_persistence_the_data_goes_with_the_pod() -> None:
    made = render({"database": {"builtIn": {"persistence": {"enabled": False}}}})
    assert {"name": "data", "emptyDir": {}} in made.pod(DATABASE)["volumes"]
    assert "volumeClaimTemplates" not in made.one("StatefulSet", DATABASE)["spec"]


def test_the_volume_is_asked_for_as_the_values_say_and_outlives_the_release() -> None:
    persistence = {"size": "20Gi", "storageClass": "fast", "accessModes": ["ReadWriteOncePod"]}
    spec = render({"database": {"builtIn": {"persistence": persistence}}}).one("StatefulSet", DATABASE)["spec"]
    [claim] = [each["spec"] for each in spec["volumeClaimTemplates"]]
    assert claim == {
        "accessModes": ["ReadWriteOncePod"],
        "storageClassName": "fast",
        "resources": {"requests": {"storage": "20Gi"}},
    }
    assert spec["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Retain"


def test_a_claim_that_is_there_is_taken() -> None:
    made = render({"database": {"builtIn": {"persistence": {"existingClaim": "old"}}}})
    assert {"name": "data", "persistentVolumeClaim": {"claimName": "old"}} in made.pod(DATABASE)["volumes"]


def test_the_one_organization_has_the_namespace_of_the_release_until_others_are_declared() -> None:
    made = render({})
    assert declared(made) == {"default": {}}
    assert json.loads(settings(made, OPERATOR)["CRONPLANE_NAMESPACES"]) == {NAMESPACE: "default"}


def test_organizations_are_declared_with_what_was_said_of_them_and_no_more() -> None:
    made = render(EVERYTHING)
    assert declared(made) == {
        "acme": {"entrypoints": ["dummy_print"], "cron_quota": 5, "triggers_per_minute": None},
        "umbrella": {"entrypoints": None},
    }
    mapped = {"acme": "acme", "acme-batch": "acme", "umbrella": "umbrella"}
    assert json.loads(settings(made, OPERATOR)["CRONPLANE_NAMESPACES"]) == mapped


def test_the_operator_has_rights_where_organizations_have_namespaces_and_in_its_own() -> None:
    def places(values: Document) -> set[str]:
        name = f"{NAMESPACE}-{OPERATOR}"
        return {
            each["metadata"]["namespace"]
            for each in render(values)
            if each["kind"] == "Role" and each["metadata"]["name"] == name
        }

    assert places({}) == {NAMESPACE}
    assert places(EVERYTHING) == {NAMESPACE, "acme", "acme-batch", "umbrella"}


def test_jobs_of_runs_are_made_where_the_values_say_with_an_account_of_their_own() -> None:
    made = render(EVERYTHING)
    assert settings(made, OPERATOR)["CRONPLANE_RUN_NAMESPACE"] == "runs"
    account = made.one("ServiceAccount", "rel-cronplane-run", namespace="runs")
    assert account["imagePullSecrets"] == [{"name": "pull"}]
    rules = made.one("Role", f"{NAMESPACE}-{OPERATOR}-runs", namespace="runs")["rules"]
    assert [rule["resources"] for rule in rules] == [["jobs"], ["pods"], ["pods/log"], ["events"]]
    assert made.one("Role", f"{NAMESPACE}-{API}", namespace="runs")["rules"][0]["verbs"] == ["get"]


def test_pods_of_runs_are_told_what_their_entries_are_but_no_secret() -> None:
    profiles = json.loads(settings(render(EVERYTHING), OPERATOR)["CRONPLANE_POD_PROFILES"])
    told = {
        "CRONPLANE_ENTRY_HTTP_REQUEST_ALLOWED_HOSTS": "reports.internal:8080",
        "CRONPLANE_ENTRY_HTTP_REQUEST_SECRETS": '{"reports_key":{"hosts":["a.example"],"organizations":"*"}}',
    }
    assert profiles["default"]["environment"] == told
    assert profiles["large"]["environment"] == told | {"MODE": "batch"}
    assert profiles["large"]["secret_files"] == {"certificates": "/certificates"}
    assert "HTTP_REQUEST_SECRET_" not in json.dumps(profiles)


def test_containers_of_tenants_are_told_nothing_of_entries() -> None:
    values = EVERYTHING | {"runs": {"profiles": {"container": {"environment": {"REGION": "north"}, "runAsUser": 1000}}}}
    profiles = json.loads(settings(render(values), OPERATOR)["CRONPLANE_POD_PROFILES"])
    assert profiles["container"] == {"environment": {"REGION": "north"}, "run_as_user": 1000}
    assert "CRONPLANE_ENTRY_HTTP_REQUEST_SECRETS" in profiles["default"]["environment"]


def test_settings_of_entries_are_those_of_both_roles_and_secret_ones_come_from_secrets() -> None:
    made = render(EVERYTHING)
    for role in (API, OPERATOR):
        told = settings(made, role)
        assert told["CRONPLANE_ENTRY_DUMMY_PRINT_EXECUTION"] == "pod"
        assert told["CRONPLANE_ENTRY_HTTP_REQUEST_ALLOWED_HOSTS"] == "reports.internal:8080"
        assert told["CRONPLANE_ENTRY_CONTAINER_IMAGES"] == '{"images.example.org/team/*":"*"}'
        assert told["CRONPLANE_ENTRY_CONTAINER_LIMITS"] == '{"memory":"4Gi"}'
        secret = variables(container(made, role))["CRONPLANE_ENTRY_HTTP_REQUEST_SECRET_REPORTS_KEY"]
        assert secret == ("reports", "token")


def test_large_numbers_are_written_out() -> None:
    told = settings(render({"operator": {"settings": {"workerMemory": 8589934592, "resyncInterval": 0.5}}}), OPERATOR)
    assert (told["CRONPLANE_WORKER_MEMORY"], told["CRONPLANE_RESYNC_INTERVAL"]) == ("8589934592", "0.5")


def test_new_settings_make_new_pods() -> None:
    def checksum(values: Document) -> str:
        template = render(values).one("Deployment", API)["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/settings"])

    assert checksum({}) == checksum({"operator": {"replicas": 3}})
    assert checksum({}) != checksum({"api": {"settings": {"bodyLimit": 4096}}})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, f"cronplane:{yaml.safe_load((CHART / 'Chart.yaml').read_text())['appVersion']}"),
        ({"image": {"registry": "a.example.org", "tag": "x"}}, "a.example.org/cronplane:x"),
        (
            {"global": {"imageRegistry": "b.example.org"}, "image": {"registry": "a.example.org", "tag": "x"}},
            "b.example.org/cronplane:x",
        ),
        ({"image": {"digest": f"sha256:{'a' * 64}", "tag": "x"}}, f"cronplane@sha256:{'a' * 64}"),
    ],
    ids=["default", "registry", "global-registry", "digest"],
)
def test_every_pod_has_the_same_image(values: Document, expected: str) -> None:
    made = render(values)
    assert {each["image"] for _, pod in made.pods() for each in pod["containers"]} == {expected}
    assert settings(made, OPERATOR)["CRONPLANE_RUN_IMAGE"] == expected


def test_pull_secrets_are_those_of_every_pod() -> None:
    pods = render({"global": {"imagePullSecrets": [{"name": "a"}]}, "image": {"pullSecrets": [{"name": "b"}]}}).pods()
    assert {json.dumps(pod["imagePullSecrets"]) for _, pod in pods} == {'[{"name": "a"}, {"name": "b"}]'}


@pytest.mark.parametrize(
    ("values", "release", "expected"),
    [
        ({}, "rel", "rel-cronplane-api"),
        ({}, "cronplane", "cronplane-api"),
        ({"nameOverride": "jobs"}, "rel", "rel-jobs-api"),
        ({"fullnameOverride": "jobs"}, "rel", "jobs-api"),
    ],
)
def test_names_come_from_release_and_chart(values: Document, release: str, expected: str) -> None:
    assert expected in render(values, release=release).names("Deployment")


def test_names_of_the_cluster_differ_between_namespaces_and_so_does_the_installations() -> None:
    made = render({})
    assert made.names("ClusterRole") == [f"{NAMESPACE}-{API}", f"{NAMESPACE}-{OPERATOR}"]
    assert settings(made, OPERATOR)["CRONPLANE_INSTALLATION"] == f"{NAMESPACE}-rel-cronplane"
    assert settings(render(EVERYTHING), OPERATOR)["CRONPLANE_INSTALLATION"] == "production"


def test_probes_ask_whether_the_process_lives_and_whether_it_can_serve() -> None:
    made = render({})
    assert container(made, API)["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
    assert container(made, OPERATOR)["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "metrics"}
    for role in (API, OPERATOR):
        assert container(made, role)["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_a_pod_has_the_time_that_its_process_takes_to_end() -> None:
    values = {"api": {"settings": {"shutdownGrace": 100}}, "operator": {"settings": {"drainGrace": 200}}}
    made = render(values)
    assert (
        made.pod(API)["terminationGracePeriodSeconds"]
        > 100 + container(made, API)["lifecycle"]["preStop"]["sleep"]["seconds"]
    )
    assert made.pod(OPERATOR)["terminationGracePeriodSeconds"] > 200


@pytest.mark.parametrize("role", ["api", "operator"])
def test_whatever_a_role_is_given_beyond_the_usual_is_in_its_pods(role: str) -> None:
    made = render({role: ROLE_EXTRAS})
    deployment = made.one("Deployment", f"rel-cronplane-{role}")
    template = deployment["spec"]["template"]
    pod, [process] = template["spec"], template["spec"]["containers"]
    assert template["metadata"]["annotations"]["example.org/pod"] == "yes"
    assert template["metadata"]["labels"]["tier"] == "control"
    assert {"name": "SSL_CERT_FILE", "value": "/extra/ca.pem"} in process["env"]
    assert {"secretRef": {"name": "extra"}} in process["envFrom"]
    assert ROLE_EXTRAS["extraVolumes"][0] in pod["volumes"]
    assert ROLE_EXTRAS["extraVolumeMounts"][0] in process["volumeMounts"]
    for field in ("nodeSelector", "tolerations", "affinity", "topologySpreadConstraints", "priorityClassName"):
        assert pod[field] == ROLE_EXTRAS[field]
    assert pod["serviceAccountName"] == "given"
    assert made.one("ServiceAccount", "given")["metadata"]["annotations"] == {"example.org/role": "service"}


def test_jobs_of_the_release_have_what_they_are_given_such_as_certificates_of_the_database() -> None:
    given = {name: ROLE_EXTRAS[name] for name in ("extraEnv", "extraEnvFrom", "extraVolumes", "extraVolumeMounts")}
    made = render(OUTSIDE | {"jobs": given})
    pod = made.pod("rel-cronplane-migration")
    [process] = pod["containers"]
    assert variables(process)["SSL_CERT_FILE"] == "/extra/ca.pem"
    assert process["envFrom"] == ROLE_EXTRAS["extraEnvFrom"]
    assert ROLE_EXTRAS["extraVolumes"][0] in pod["volumes"]
    assert ROLE_EXTRAS["extraVolumeMounts"][0] in process["volumeMounts"]


def test_pods_are_spread_over_nodes_and_zones_of_their_own_role() -> None:
    for constraint in render({}).pod(API)["topologySpreadConstraints"]:
        assert constraint["labelSelector"]["matchLabels"]["app.kubernetes.io/component"] == "api"


def test_labels_and_annotations_of_the_installation_are_on_everything_but_the_definitions() -> None:
    made = [each for each in render(EVERYTHING) if each["kind"] != "CustomResourceDefinition"]
    assert [each for each in made if each["metadata"]["labels"].get("team") != "platform"] == []
    assert [each for each in made if each["metadata"]["annotations"].get("example.org/note") != "kept"] == []


def test_no_selector_has_a_label_that_may_change() -> None:
    stable = {"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component"}
    for each in render(EVERYTHING):
        if each["kind"] in {"Deployment", "StatefulSet"}:
            assert each["spec"]["selector"]["matchLabels"].keys() == stable
        if each["kind"] == "Service":
            assert each["spec"]["selector"].keys() == stable


def test_only_what_is_meant_for_people_is_published() -> None:
    made = render(EVERYTHING)
    [rule] = made.one("Ingress", API)["spec"]["rules"]
    [route] = made.one("HTTPRoute", API)["spec"]["rules"]
    published = {path["path"] for path in rule["http"]["paths"]}
    assert published == {"/crons", "/entrypoints", "/organizations", "/openapi.json"}
    assert {match["path"]["value"] for match in route["matches"]} == published
    assert route["backendRefs"] == [{"name": API, "port": 80}]


def test_an_autoscaler_alone_decides_how_many_pods_there_are() -> None:
    made = render(EVERYTHING)
    assert "replicas" not in made.one("Deployment", API)["spec"]
    scaler = made.one("HorizontalPodAutoscaler", API)["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (2, 6)
    assert scaler["behavior"] == {"scaleDown": {"stabilizationWindowSeconds": 60}}


def test_budgets_and_policies_can_be_left_to_others() -> None:
    off = {"podDisruptionBudget": {"enabled": False}}
    made = render({"api": off, "operator": off, "networkPolicy": {"enabled": False}})
    assert made.names("PodDisruptionBudget") + made.names("NetworkPolicy") == []


def component_peers(policy: Document) -> set[str]:
    [rule] = policy["spec"]["ingress"]
    return {each["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for each in rule["from"]}


def test_only_who_needs_the_built_in_database_reaches_it() -> None:
    policy = render({}).one("NetworkPolicy", DATABASE)
    assert component_peers(policy) == {"api", "operator", "migration"}
    assert (policy["spec"]["policyTypes"], "egress" in policy["spec"]) == (["Ingress", "Egress"], False)


def test_a_pod_of_a_run_reaches_the_api_and_names_and_what_its_entry_was_allowed() -> None:
    made = render(EVERYTHING)
    name = f"{NAMESPACE}-rel-cronplane-runs"
    whole = made.one("NetworkPolicy", name, namespace="runs")["spec"]
    installation = {"crons.cronplane.dev/installation": "production"}
    assert (whole["podSelector"]["matchLabels"], "ingress" in whole) == (installation, False)
    [api, names] = whole["egress"]
    assert api["ports"] == [{"port": 8080}]
    assert [port["port"] for port in names["ports"]] == [53, 53]
    of_entry = made.one("NetworkPolicy", f"{name}-http-request", namespace="runs")["spec"]
    assert of_entry["podSelector"]["matchLabels"] == installation | {"crons.cronplane.dev/entrypoint": "http_request"}
    assert of_entry["egress"] == EVERYTHING["entries"]["http_request"]["egress"]


def test_the_api_is_open_to_all_unless_somebody_is_named_and_then_to_runs_and_the_test_as_well() -> None:
    [everybody] = render({}).one("NetworkPolicy", API)["spec"]["ingress"]
    assert "from" not in everybody
    [named] = render(EVERYTHING).one("NetworkPolicy", API)["spec"]["ingress"]
    assert named["from"][0] == {"namespaceSelector": {"matchLabels": {"tier": "edge"}}}
    assert len(named["from"]) == 3


def test_nobody_reaches_the_operators_metrics_if_nobody_is_named() -> None:
    policy = render({"networkPolicy": {"metricsFrom": []}}).one("NetworkPolicy", OPERATOR)["spec"]
    assert (policy["policyTypes"], policy.get("ingress")) == (["Ingress"], None)


def test_both_roles_are_scraped() -> None:
    made = render(EVERYTHING)
    for name, port in ((API, "http"), (OPERATOR, "metrics")):
        monitor, service = made.one("ServiceMonitor", name), made.one("Service", name)
        assert monitor["metadata"]["labels"]["release"] == "prometheus"
        [endpoint] = monitor["spec"]["endpoints"]
        assert (endpoint["port"], endpoint["path"]) == (port, "/metrics")
        assert port in {each["name"] for each in service["spec"]["ports"]}
        assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()


def rights(made: Manifests, name: str) -> dict[tuple[str, str], list[str]]:
    """Give what the Roles of a hook allow, by namespace and resource."""
    return {
        (role["metadata"]["namespace"], resource): rule["verbs"]
        for role in made
        if role["kind"] == "Role" and role["metadata"]["name"].startswith(f"{NAMESPACE}-{name}")
        for rule in role["rules"]
        for resource in rule["resources"]
    }


def test_accounts_of_hooks_may_do_what_they_need_and_no_more() -> None:
    made = render(EVERYTHING)
    crons = {(place, "crons"): ["list", "delete"] for place in (NAMESPACE, "acme", "acme-batch", "umbrella")}
    left = {(NAMESPACE, "runners"): ["delete"], ("runs", "jobs"): ["list", "delete"]}
    assert rights(made, SELFTEST) == {("acme", "crons"): ["get"]}
    assert rights(made, CREDENTIALS) == {(NAMESPACE, "secrets"): ["get", "create", "patch"]}
    assert rights(made, UNINSTALL) == crons | left
    assert made.names("ClusterRole") == [f"{NAMESPACE}-{API}", f"{NAMESPACE}-{OPERATOR}"]


def test_each_account_has_its_own_rights() -> None:
    for binding in render(EVERYTHING):
        if binding["kind"] in {"RoleBinding", "ClusterRoleBinding"}:
            [subject] = binding["subjects"]
            assert subject["namespace"] == NAMESPACE
            assert binding["roleRef"]["name"].startswith(f"{NAMESPACE}-{subject['name']}")


def test_the_self_test_asks_the_api_as_it_is_installed() -> None:
    told = variables(container(render(EVERYTHING), SELFTEST))
    assert told["CRONPLANE_SELFTEST_ORGANIZATION"] == "acme"
    assert told["CRONPLANE_URL"] == f"http://{API}.{NAMESPACE}.svc:80"
    assert told["CRONPLANE_ENTRY_DUMMY_PRINT_EXECUTION"] == "pod"


def test_the_self_test_takes_an_organization_that_may_use_its_entry() -> None:
    organizations = {"a": {"entrypoints": ["http_request"]}, "b": {"entrypoints": ["dummy_print"]}, "c": {}}
    told = variables(container(render({"organizations": organizations}), SELFTEST))
    assert told["CRONPLANE_SELFTEST_ORGANIZATION"] == "b"


def test_what_is_left_is_removed_after_everything_else() -> None:
    made = render(EVERYTHING)
    job = made.one("Job", UNINSTALL)
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "post-delete"
    told = variables(job["spec"]["template"]["spec"]["containers"][0])
    assert told["CRONPLANE_INSTALLATION"] == "production"


def test_only_those_accounts_have_a_token_that_need_one() -> None:
    mounted = {name for name, pod in render({}).pods() if pod["automountServiceAccountToken"]}
    assert mounted == {API, OPERATOR, CREDENTIALS, SELFTEST, UNINSTALL}


def test_definitions_are_kept_when_the_release_goes_and_can_be_left_to_others() -> None:
    definitions = [each for each in render({}) if each["kind"] == "CustomResourceDefinition"]
    assert len(definitions) == 2
    assert {each["metadata"]["annotations"]["helm.sh/resource-policy"] for each in definitions} == {"keep"}
    assert render({"crds": {"install": False}}).names("CustomResourceDefinition") == []


def test_no_template_asks_the_cluster_or_chance_or_a_clock() -> None:
    written = "".join(path.read_text(encoding="utf-8") for path in (CHART / "templates").iterdir())
    actions = [each for each in re.findall(r"{{-?(.*?)}}", written, re.DOTALL) if not each.strip().startswith("/*")]
    assert len(actions) > 500
    asking = re.compile(r"\b(lookup|rand\w+|gen[A-Z]\w+|uuidv4|now|env)\b")
    assert [each for each in actions if asking.search(re.sub(r'"[^"]*"', "", each))] == []
