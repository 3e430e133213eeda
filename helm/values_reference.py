"""What a value of the chart means stands once, in the comments of its values.yaml: schema and table are made from them.

`make chart-docs` writes `values.schema.json` and the table in the chart's README anew. The comment right above a key
describes it. What its default does not tell stands in a line of its own: `# @schema {…}` adds to the key's JSON Schema,
and `# @define name {…}`, above no key, is a part that several refer to. A mapping is closed: it takes the keys that
stand there and no other, unless its `@schema` says what it is a mapping of.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

CHART = Path(__file__).parent / "cronplane"
_DRAFT = "http://json-schema.org/draft-07/schema#"
_BEGIN, _END = "<!-- values: begin -->", "<!-- values: end -->"
_DIRECTIVE = re.compile(r"@(?:schema|define (?P<name>\w+)) ")
_TYPES: Mapping[type, str] = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}
_HEAD = "| value | default | meaning |\n|---|---|---|\n"
_ABSENT = object()
Schema = dict[str, Any]


class UnreadableValuesError(ValueError):
    """values.yaml is not as the head of this module says."""


class Comment(NamedTuple):
    """A comment, read: what it says to people, what it adds to a schema, and what it defines."""

    text: str
    schema: Schema
    definitions: Schema


def values_schema(page: str) -> Schema:
    """Make the schema of values.yaml, given as text.

    Raises:
        UnreadableValuesError: a key has no comment, or its default does not tell its type.

    """
    lines = page.splitlines()
    root = yaml.compose(page, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        raise UnreadableValuesError("values.yaml is no mapping")
    definitions: Schema = {}
    for block in _comment_blocks(lines):
        definitions |= _read_comment(block).definitions
    return {"$schema": _DRAFT, "$defs": definitions, **_closed(root, lines)}


def values_table(page: str) -> str:
    """Make the Markdown tables of values.yaml, given as text: one for each group of values, after one of the others."""
    defaults = yaml.safe_load(page)
    parts = values_schema(page)["properties"]
    groups = {name: part for name, part in parts.items() if "properties" in part}
    sections = [_table(_rows(name, part, defaults[name])) for name, part in parts.items() if name not in groups]
    of_groups = [
        f"\n### {name}\n\n{part['description']}\n\n{_HEAD}{_table(_rows(name, part, defaults[name]))}"
        for name, part in groups.items()
    ]
    return "".join([_HEAD, *sections, *of_groups])


def with_table(readme: str, table: str) -> str:
    """Put the tables between the two marks in the chart's README."""
    before, after = readme.partition(_BEGIN)[0], readme.partition(_END)[2]
    return f"{before}{_BEGIN}\n\n{table}\n{_END}{after}"


def as_json(schema: Schema) -> str:
    """Write a schema the same each time."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _comment_blocks(lines: list[str]) -> Iterator[list[str]]:
    block: list[str] = []
    for line in [*lines, ""]:
        if line.lstrip().startswith("#"):
            block.append(line)
        elif block:
            yield block
            block = []


def _read_comment(block: list[str]) -> Comment:
    """Read the lines of a comment; a directive goes on in lines that are indented further."""
    text: list[str] = []
    directives: list[str] = []
    for line in block:
        words = line.strip().removeprefix("#").removeprefix(" ")
        if _DIRECTIVE.match(words):
            directives.append(words)
        elif directives and words.startswith("  "):
            directives[-1] += f" {words.strip()}"
        else:
            text.append(words)
    schema: Schema = {}
    definitions: Schema = {}
    for directive in directives:
        _take_in(directive, schema, definitions)
    return Comment(text=" ".join(text).strip(), schema=schema, definitions=definitions)


def _take_in(directive: str, schema: Schema, definitions: Schema) -> None:
    match = _DIRECTIVE.match(directive)
    if match is None:
        raise UnreadableValuesError(directive)
    written = yaml.safe_load(directive[match.end() :])
    if match["name"]:
        definitions[match["name"]] = written
    else:
        schema.update(written)


def _comment_above(line: int, lines: list[str]) -> Comment:
    first = line
    while first > 0 and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return _read_comment(lines[first:line])


def _closed(node: yaml.MappingNode, lines: list[str]) -> Schema:
    properties = {key.value: _property(key, value, lines) for key, value in node.value}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _property(key: yaml.ScalarNode, value: yaml.Node, lines: list[str]) -> Schema:
    comment = _comment_above(key.start_mark.line, lines)
    where = f"values.yaml, line {key.start_mark.line + 1}"
    if not comment.text:
        raise UnreadableValuesError(f"{where}: say what {key.value} is for")
    if "$ref" in comment.schema and len(comment.schema) > 1:
        raise UnreadableValuesError(f"{where}: what stands beside a $ref is not heeded")
    schema: Schema = {"description": comment.text}
    if isinstance(value, yaml.MappingNode) and value.value and _has_commented_keys(comment.schema):
        schema |= _closed(value, lines)
    elif "additionalProperties" in comment.schema:
        schema["type"] = "object"
    elif not comment.schema.keys() & {"type", "$ref"}:
        schema["type"] = _type_of(value, where)
    return schema | comment.schema


def _has_commented_keys(schema: Schema) -> bool:
    """Say whether each key of a mapping has a comment of its own, also where others are let in beside them."""
    return not schema.keys() & {"type", "$ref"} and schema.get("additionalProperties", True) is True


def _type_of(value: yaml.Node, where: str) -> str:
    default = yaml.safe_load(yaml.serialize(value))
    if type(default) not in _TYPES:
        raise UnreadableValuesError(f"{where}: its default does not tell its type; add an @schema")
    return _TYPES[type(default)]


def _rows(path: str, schema: Schema, default: object) -> Iterator[tuple[str, object, str]]:
    """Give a row for each value that can be set, and for each field of what is set by name or in lists."""
    if "properties" in schema and isinstance(default, dict) and default:
        for name, part in schema["properties"].items():
            yield from _rows(f"{path}.{name}", part, default[name])
        return
    yield path, default, schema.get("description", "")
    entry = schema.get("additionalProperties")
    if isinstance(entry, dict):
        for name, part in entry.get("properties", {}).items():
            yield from _rows(f"{path}.<name>.{name}", part, _ABSENT)


def _table(rows: Iterable[tuple[str, object, str]]) -> str:
    return "".join(_row(*row) for row in rows)


def _row(path: str, default: object, meaning: str) -> str:
    shown = "" if default is _ABSENT else f"`{json.dumps(default, ensure_ascii=False)}` "
    return f"| `{path}` | {shown}| {meaning} |\n"


def main() -> None:
    """Write schema and tables anew."""
    page = (CHART / "values.yaml").read_text(encoding="utf-8")
    (CHART / "values.schema.json").write_text(as_json(values_schema(page)), encoding="utf-8")
    readme = CHART / "README.md"
    readme.write_text(with_table(readme.read_text(encoding="utf-8"), values_table(page)), encoding="utf-8")


if __name__ == "__main__":
    main()
