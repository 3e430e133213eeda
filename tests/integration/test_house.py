"""The layout: folders named like the standard library's modules must not stand in their way."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "cronplane_api",
    "cronplane_cli",
    "cronplane_core",
    "cronplane_entries",
    "cronplane_migrations",
    "cronplane_operator",
}


def python(*arguments: str, folder: Path) -> str:
    result = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The distribution, built as it is published."""
    folder = tmp_path_factory.mktemp("wheel")
    python("-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), folder=ROOT)
    [path] = folder.glob("*.whl")
    return path


@pytest.mark.parametrize("module", ["dataclasses", "operator", "collections"])
def test_the_standard_library_is_itself_at_the_root_of_the_repository(module: str) -> None:
    place = python("-c", f"import {module}; print({module}.__file__)", folder=ROOT)
    assert not Path(place).is_relative_to(ROOT / "operator")
    assert "cronplane" not in Path(place).name


def test_an_editable_install_has_every_package_and_shadows_nothing(tmp_path: Path) -> None:
    program = f"import dataclasses, operator, {', '.join(sorted(PACKAGES))}; print(operator.__file__)"
    assert not Path(python("-c", program, folder=tmp_path)).is_relative_to(ROOT / "operator")


def test_a_wheel_has_every_package_at_its_top_and_shadows_nothing(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    tops = {path.name for path in tmp_path.iterdir() if not path.name.endswith(".dist-info")}
    assert tops == PACKAGES
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
        "import dataclasses, operator, cronplane_operator; print(operator.__file__, cronplane_operator.__file__)"
    )
    standard, ours = python("-c", program, folder=tmp_path).split()
    assert not Path(standard).is_relative_to(tmp_path)
    assert Path(ours).is_relative_to(tmp_path)


def test_a_wheel_brings_the_migrations_and_its_type_information(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert any(name.startswith("cronplane_migrations/versions/0001_") for name in names)
    assert {f"{package}/py.typed" for package in PACKAGES} <= names


def test_no_component_folder_is_itself_a_package() -> None:
    assert [path for path in ROOT.glob("*/__init__.py") if path.parent.name != "bench"] == []
