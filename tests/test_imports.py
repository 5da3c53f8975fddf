import importlib.util
import sys

import pytest

from cdl_jax.errors import ConfigError
from cdl_jax.imports import imported


def test_a_function_in_the_current_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "own_source_of_a_test.py").write_text("def samples(held):\n    return 'found'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    (tmp_path / "colorsys.py").write_text("")
    assert imported("own_source_of_a_test:samples")(0) == "found"
    with pytest.raises(ConfigError, match="cannot find own_source_of_a_test:others"):
        imported("own_source_of_a_test:others")
    found = importlib.util.find_spec("colorsys")
    assert found is not None
    assert not str(found.origin).startswith(str(tmp_path))  # what is installed comes first
