"""The CRDs as people apply them: YAML, the same each time."""

import yaml

from cronplane_operator.resource_definitions import resource_definitions


class _PlainDumper(yaml.SafeDumper):
    """Writes what stands in two places twice, since few people read YAML's anchors."""

    def ignore_aliases(self, data: object) -> bool:
        del data
        return True


def page() -> str:
    """Give every definition, as documents of one YAML stream."""
    return yaml.dump_all(resource_definitions(), Dumper=_PlainDumper, sort_keys=False, width=120, explicit_start=True)
