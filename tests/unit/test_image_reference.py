"""References of images as runtimes read them, and rules that compare them part by part."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cronplane_entries.image_reference import ImageReference, ImageReferenceError, ImageRule

DIGEST = f"sha256:{'0123456789abcdef' * 4}"
OTHER_DIGEST = f"sha256:{'f' * 64}"


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("python", "docker.io/library/python:latest"),
        ("python:3.13", "docker.io/library/python:3.13"),
        ("team/app", "docker.io/team/app:latest"),
        ("docker.io/python", "docker.io/library/python:latest"),
        ("index.docker.io/library/python", "docker.io/library/python:latest"),
        ("localhost/app:1", "localhost/app:1"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("Registry.Example/team/app:1", "registry.example/team/app:1"),
        ("registry.example:5000/a/b__c/d--e.f:V1_-.x", "registry.example:5000/a/b__c/d--e.f:V1_-.x"),
        (f"registry.example/app@{DIGEST}", f"registry.example/app@{DIGEST}"),
        (f"registry.example/app:1@{DIGEST}", f"registry.example/app:1@{DIGEST}"),
    ],
)
def test_what_is_left_out_is_filled_in_as_a_runtime_would(text: str, whole: str) -> None:
    assert str(ImageReference.parse(text)) == whole


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "team/App",
            "a b",
            "a\n",
            "a:",
            "a:b:c",
            "a@",
            "a:-x",
            f"a:{'x' * 129}",
        ),
        *("https://registry.example/app", "user:password@registry.example/app", "registry.example:port/app"),
        *("-registry.example/app", "registry.example:123456/app", "[::1]:5000/app", "a_/b", "a..b/c", "a___b"),
        *(
            "app@sha256:abc",
            f"app@{DIGEST.upper()}",
            f"app@md5:{'0' * 32}",
            f"app@{DIGEST}@{DIGEST}",
            f"app@{DIGEST}:1",
        ),
        *(
            "registry.example/",
            "registry.example/*",
            "app:*",
            f"registry.example/{'a/' * 130}a",
            "pyth\u00f6n",
            "app:\uff11",
        ),
    ],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(ImageReferenceError):
        ImageReference.parse(text)


part = st.from_regex(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*", fullmatch=True).filter(lambda text: len(text) < 40)
references = st.builds(
    ImageReference,
    registry=st.sampled_from(["registry.example", "registry.example:5000", "localhost"]),
    repository=st.lists(part, min_size=1, max_size=4).map(tuple),
    tag=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True),
    digest=st.sampled_from([None, DIGEST, OTHER_DIGEST]),
)


@given(reference=references)
def test_what_is_written_is_read_back(reference: ImageReference) -> None:
    assert ImageReference.parse(str(reference)) == reference


@given(text=st.text(alphabet="aZ0.:/@-_*é \n", max_size=40))
def test_any_text_is_a_reference_that_stays_the_same_or_is_refused(text: str) -> None:
    try:
        reference = ImageReference.parse(text)
    except ImageReferenceError:
        return
    assert ImageReference.parse(str(reference)) == reference


@given(reference=references)
def test_an_image_is_allowed_by_its_own_reference_and_by_what_it_lies_in(reference: ImageReference) -> None:
    repository = "/".join((reference.registry, *reference.repository))
    for rule in (str(reference), repository, repository.rpartition("/")[0] + "/*", f"{reference.registry}/*"):
        assert ImageRule.parse(rule).allows(reference)


@pytest.mark.parametrize(
    ("rule", "image", "is_allowed"),
    [
        ("registry.example/team/*", "registry.example/team/app:1", True),
        ("registry.example/team/*", "registry.example/team/group/app", True),
        ("registry.example/team/*", f"registry.example/team/app@{DIGEST}", True),
        ("registry.example/team/*", "registry.example/team", False),
        ("registry.example/team/*", "registry.example/teams/app", False),
        ("registry.example/team/*", "registry.example.evil.example/team/app", False),
        ("registry.example/team/*", "registry.example:5000/team/app", False),
        ("registry.example/team/*:1", "registry.example/team/app:1", True),
        ("registry.example/team/*:1", "registry.example/team/app:2", False),
        ("registry.example/team", "registry.example/team/app", False),
        ("registry.example/app", "registry.example/app:anything", True),
        ("registry.example/app", "registry.example/apple", False),
        ("registry.example/app:1", "registry.example/app:1", True),
        ("registry.example/app:1", "registry.example/app:1.1", False),
        ("registry.example/app:1", "registry.example/app", False),
        ("registry.example/app:1", f"registry.example/app:1@{DIGEST}", False),
        (f"registry.example/app@{DIGEST}", f"registry.example/app@{DIGEST}", True),
        (f"registry.example/app@{DIGEST}", f"registry.example/app:1@{DIGEST}", True),
        (f"registry.example/app@{DIGEST}", f"registry.example/app@{OTHER_DIGEST}", False),
        (f"registry.example/app@{DIGEST}", "registry.example/app:1", False),
        (f"registry.example/app:1@{DIGEST}", f"registry.example/app:1@{DIGEST}", True),
        (f"registry.example/app:1@{DIGEST}", f"registry.example/app:2@{DIGEST}", False),
        ("python", "docker.io/library/python:3.13", True),
        ("library/*", "python", True),
        ("docker.io/*", "team/app", True),
        ("docker.io/*", "registry.example/docker.io/app", False),
    ],
)
def test_a_rule_compares_part_by_part(rule: str, image: str, *, is_allowed: bool) -> None:
    assert ImageRule.parse(rule).allows(ImageReference.parse(image)) is is_allowed


@pytest.mark.parametrize("rule", ["", "*", "registry.example/te*", "*/app", "registry.example/*/app", "app:*", "/*"])
def test_what_is_no_rule_is_refused(rule: str) -> None:
    with pytest.raises(ImageReferenceError):
        ImageRule.parse(rule)
