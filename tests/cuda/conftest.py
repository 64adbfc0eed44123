import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
torch = pytest.importorskip("torch")


@pytest.fixture(scope="session")
def ops():
    from harness import Ops, find_library

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    library = find_library()
    if library is None:
        pytest.skip("no build with PAGEDCORE_CUDA=ON and PAGEDCORE_TESTS=ON under build/")
    ops = Ops(library)
    yield ops
    ops.close()


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in Path(item.path).parents:
            item.add_marker(pytest.mark.cuda)
