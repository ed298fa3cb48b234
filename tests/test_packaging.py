"""What a user installs: the wheel, in an environment of its own."""

import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_plain_files_under_one_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert all(name.startswith(("mammosae_plugin/", "mammosae_plugin-")) for name in names)
    for name in (
        "mammosae_plugin/adapters/mammo_clip.py",
        "mammosae_plugin/datasets/totalsegmentator.json",
        "mammosae_plugin/hub_cards/sae.md.j2",
        "mammosae_plugin/hub_cards/training.md.j2",
        "mammosae_plugin/hub_cards/space/index.html",
        "mammosae_plugin/hub_cards/space/app.js",
        "mammosae_plugin/interpretation/mammography.yaml",
        "mammosae_plugin/report/first.html.j2",
        "mammosae_plugin/report/style.css",
        "mammosae_plugin/report/paper_results.json",
        "mammosae_plugin/py.typed",
        "mammosae_plugin/__init__.pyi",
        "mammosae_plugin/analysis/__init__.pyi",
    ):
        assert name in names


@pytest.mark.slow
def test_the_wheel_works_in_a_clean_environment(wheel, tmp_path):
    """A new environment that has the dependencies of this one, but not this checkout."""
    elsewhere = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--no-deps", "--quiet", wheel], check=True, env=elsewhere)
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    # A plain path line adds the folder without reading the .pth files in it, such as that of the editable install.
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    script = (
        "import mammosae_plugin, mammosae_plugin.adapters, mammosae_plugin.hub_cards, mammosae_plugin.study\n"
        "from mammosae_plugin.adapters import load_mammo_clip, HookedVisionModel\n"
        "print(mammosae_plugin.__file__); print(mammosae_plugin.adapters.__file__)\n"
        "import jinja2\n"
        "jinja2.PackageLoader('mammosae_plugin', 'hub_cards')\n"
        "try:\n    import adapters\nexcept ImportError:\n    print('no top-level adapters')\n"
    )
    result = subprocess.run(
        [python, "-c", script], check=True, capture_output=True, text=True, cwd=tmp_path, env=elsewhere
    )
    where, adapters, note = result.stdout.splitlines()
    assert where.startswith(site)
    assert adapters.startswith(site)
    assert note == "no top-level adapters"
    command = tmp_path / "venv" / "bin" / "mammosae"
    assert "study" in subprocess.run([command, "--help"], check=True, capture_output=True, text=True).stdout


def test_importing_the_package_imports_no_room_and_no_optional_package():
    script = (
        "import sys, mammosae_plugin\n"
        "assert [name for name in sys.modules if name.startswith('mammosae_plugin.')] == ['mammosae_plugin.version']\n"
        "assert {'Study', 'load_vision_sae', 'sweep'} <= set(dir(mammosae_plugin))\n"
        "import mammosae_plugin.study\n"
        "assert 'nnsight' not in sys.modules and 'pydicom' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_version_is_said_once_and_dependencies_are_bounded(wheel):
    import mammosae_plugin

    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dynamic"] == ["version"]
    assert wheel.name.split("-")[1] == mammosae_plugin.__version__
    assert all(re.search(r"<\d", dependency) for dependency in project["dependencies"])
