"""The notebooks run, in their order, in one kernel that imports what they need once, with a Hub on this machine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from helpers_adapters import DATA
from helpers_hub import LoopbackHub
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent.parent / "examples" / "notebooks"
ORDER = ("load_and_look", "own_data", "sail", "publish", "confounders")  # publish sends what own_data made
FIRST = "%reset -f\nimport os\nos.chdir({folder!r})"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.commit("pwesp/sail", {"dinov3_sae.ckpt": DATA / "sail" / "sae" / "last.ckpt"})
        yield hub


@pytest.fixture(scope="module")
def kernel(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelManager]:
    home = tmp_path_factory.mktemp("home")
    own = {"IPYTHONDIR": str(home / "ipython"), "JUPYTER_RUNTIME_DIR": str(home / "runtime")}
    manager = KernelManager(kernel_name="python3", connection_file=str(home / "kernel.json"))
    manager.start_kernel(env=hub.environment(home) | own)
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebooks")


@pytest.mark.parametrize("name", ORDER)
def test_a_notebook_runs(name: str, kernel: KernelManager, folder: Path) -> None:
    book: Any = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    for cell in book.cells:
        cell.source = cell.source.replace("confirm = False", "confirm = True")
    book.cells.insert(0, nbformat.v4.new_code_cell(FIRST.format(folder=str(folder))))
    NotebookClient(book, km=kernel, timeout=300).execute()
    assert all(cell.execution_count for cell in book.cells if cell.cell_type == "code")


def test_publishing_is_confirmed_by_hand_and_then_arrives(hub: LoopbackHub) -> None:
    assert "confirm = False" in (NOTEBOOKS / "publish.ipynb").read_text()
    assert {("model", "your-name/saes"), ("dataset", "your-name/findings"), ("space", "your-name/study")} <= set(
        hub.repos
    )


def test_notebooks_are_kept_without_outputs_and_each_is_run() -> None:
    files = sorted(NOTEBOOKS.glob("*.ipynb"))
    assert {file.stem for file in files} == set(ORDER)
    for file in files:
        book: Any = nbformat.read(file, as_version=4)
        nbformat.validate(book)
        for cell in book.cells:
            if cell.cell_type == "code":
                assert not cell.outputs and cell.execution_count is None, file.name
