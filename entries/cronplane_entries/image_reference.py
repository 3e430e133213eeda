"""References of container images, and rules that say which of them are allowed; compared by their parts.

A reference is read as container runtimes read it (distribution/reference: a registry, a repository, a tag, a digest),
with what they fill in where something is left out. A comparison of beginnings would take `registry.example.evil.org/x`
for one of `registry.example`. Nothing here asks a registry for anything.
"""

import re
from dataclasses import dataclass
from typing import Self

from cronplane_entries.core import EntryError

_DEFAULT_REGISTRY = "docker.io"
_OTHER_NAME_OF_IT = "index.docker.io"
_OFFICIAL = "library"
_DEFAULT_TAG = "latest"
_LONGEST_NAME = 255
_ANY_BELOW = "*"
_HOST_PART = r"(?:[a-z0-9]|[a-z0-9][a-z0-9-]*[a-z0-9])"
_REGISTRY = re.compile(rf"{_HOST_PART}(?:\.{_HOST_PART})*(?::[0-9]{{1,5}})?", re.ASCII)
_PART = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*", re.ASCII)
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", re.ASCII)


class ImageReferenceError(EntryError, ValueError):
    """This is no reference of an image; the message says which part is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReference:
    """An image by all of its parts; with a digest the tag is only a remark, and there may be none."""

    registry: str
    repository: tuple[str, ...]
    tag: str | None
    digest: str | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a reference, such as `python:3.13` or `registry.example:5000/team/app@sha256:…`.

        Raises:
            ImageReferenceError: it is none.

        """
        name, tag, digest = _split(text)
        registry, repository = _located(name)
        _check_parts(repository)
        if len("/".join((registry, *repository))) > _LONGEST_NAME:
            raise ImageReferenceError(f"registry and repository take more than {_LONGEST_NAME} characters")
        return cls(
            registry=registry,
            repository=repository,
            tag=_DEFAULT_TAG if tag is None and digest is None else tag,
            digest=digest,
        )

    def __str__(self) -> str:
        """Write it whole, so that no node fills anything in."""
        tag = "" if self.tag is None else f":{self.tag}"
        digest = "" if self.digest is None else f"@{self.digest}"
        return f"{self.registry}/{'/'.join(self.repository)}{tag}{digest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRule:
    """Which images are allowed: a repository, or with `is_tree` all below it; any tag and digest, or exactly these."""

    registry: str
    repository: tuple[str, ...]
    is_tree: bool
    tag: str | None
    digest: str | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a rule: a reference, or one that ends in `/*`; a tag that is left out is any.

        Raises:
            ImageReferenceError: it is none.

        """
        name, tag, digest = _split(text)
        is_tree = name.endswith(f"/{_ANY_BELOW}")
        registry, repository = _located_tree(name) if is_tree else _located(name)
        _check_parts(repository)
        return cls(registry=registry, repository=repository, is_tree=is_tree, tag=tag, digest=digest)

    def allows(self, image: ImageReference) -> bool:
        """Say whether an image is one of these."""
        return image.registry == self.registry and self._holds(image.repository) and self._is_version(image)

    def _holds(self, repository: tuple[str, ...]) -> bool:
        if not self.is_tree:
            return repository == self.repository
        above = len(self.repository)
        return len(repository) > above and repository[:above] == self.repository

    def _is_version(self, image: ImageReference) -> bool:
        # With a digest nobody looks at the tag, so an image that has both is none of that tag.
        if self.digest is not None:
            return image.digest == self.digest and self.tag in {None, image.tag}
        return self.tag is None or (image.tag == self.tag and image.digest is None)


def _split(text: str) -> tuple[str, str | None, str | None]:
    """Part a text into name, tag and digest, and check the latter two."""
    name, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise ImageReferenceError("the digest is no sha256 or sha512 in lower-case hexadecimal")
    # A colon before the last slash is that of a registry's port.
    place, slash, last = name.rpartition("/")
    last, colon, tag = last.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise ImageReferenceError("the tag has other characters than letters, digits, '_', '.' and '-', or too many")
    return f"{place}{slash}{last}", tag if colon else None, digest if at else None


def _located(name: str) -> tuple[str, tuple[str, ...]]:
    """Find the registry of a name, as runtimes do: its first part if that looks like a host, else the default one."""
    first, slash, rest = name.partition("/")
    if not slash or not _is_host(first):
        first, rest = _DEFAULT_REGISTRY, name
    registry = _registry(first)
    parts = tuple(rest.split("/"))
    if registry == _DEFAULT_REGISTRY and len(parts) == 1:
        parts = (_OFFICIAL, *parts)
    return registry, parts


def _located_tree(name: str) -> tuple[str, tuple[str, ...]]:
    """Find registry and repository of what a rule wants everything below of, which may be a whole registry."""
    above = name.removesuffix(f"/{_ANY_BELOW}")
    first, slash, rest = above.partition("/")
    if not _is_host(first):
        return _DEFAULT_REGISTRY, tuple(above.split("/"))
    return _registry(first), tuple(rest.split("/")) if slash else ()


def _is_host(part: str) -> bool:
    return "." in part or ":" in part or part == "localhost" or part != part.lower()


def _registry(host: str) -> str:
    registry = host.lower()
    if not _REGISTRY.fullmatch(registry):
        raise ImageReferenceError("the registry is no host, or host and port")
    return _DEFAULT_REGISTRY if registry == _OTHER_NAME_OF_IT else registry


def _check_parts(repository: tuple[str, ...]) -> None:
    if not all(_PART.fullmatch(part) for part in repository):
        raise ImageReferenceError(
            "a repository is made of lower-case letters and digits, parted by '.', '_', '-' and '/', such as team/app"
        )
