"""The README's examples run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dynkern import _C

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_readme_has_examples() -> None:
    assert len(BLOCKS) >= 2


def test_examples_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in BLOCKS:
        exec(compile(block, str(README), "exec"), names)
    assert names["y"].shape == (1, 10)
    assert (tmp_path / "net.safetensors").is_file()


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def test_an_instruction_set_can_be_forced() -> None:
    for isa in _C.isas():
        assert run("from dynkern import _C; print(_C.isa())", DYNKERN_ISA=isa).stdout.strip() == isa


def test_an_unknown_instruction_set_is_refused() -> None:
    result = run("import dynkern", DYNKERN_ISA="sse9")
    assert result.returncode == 1
    assert "DYNKERN_ISA: expected one of generic" in result.stderr
    assert "got 'sse9'" in result.stderr


def test_an_unknown_instruction_set_is_refused_at_run_time() -> None:
    before = _C.isa()
    with pytest.raises(ValueError, match="expected one of"):
        _C.force_isa("sse9")
    assert _C.isa() == before
