"""The manifest is the only list of the API: files are current, statuses honest, mistakes named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hyperlapse.shim import stubgen

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = """
[library]
title = "Test"
folder = "test"
unsupported_result = 3
[target.test]
soname = "libtest.so.1"
version_node = "libtest.so.1"
source = "nowhere"
[symbols]
testReal = "real"
testNoop = { status = "noop", reason = "because" }
testStub = "unsupported"
[entry_points]
testReal = [[3020, "testReal"], [7000, "testStub", "ptsz"]]
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "csrc/api").mkdir(parents=True)
    (tmp_path / "csrc/bridge/test").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "csrc/api/errors.toml", tmp_path / "csrc/api")
    (tmp_path / "csrc/api/test.toml").write_text(MANIFEST)
    (tmp_path / "csrc/api/gaps.txt").write_text("libtest.so.1 testStub\n")
    (tmp_path / "csrc/bridge/test/a.c").write_text("HL_API int testReal(int a)\n{\n    return a;\n}\n")
    return tmp_path


def test_generated_files_are_current_and_statuses_agree_with_the_code() -> None:
    assert stubgen.main(["--check", "--root", str(ROOT)]) == 0


def test_check_finds_a_stale_file(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stubgen.main(["--root", str(tree)]) == 0
    assert stubgen.main(["--check", "--root", str(tree)]) == 0
    (tree / "csrc/api/generated/test.map").write_text("")
    assert stubgen.main(["--check", "--root", str(tree)]) == 1
    assert "test.map is stale" in capsys.readouterr().err


def test_known_gaps_can_only_become_fewer(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gaps, manifest = tree / "csrc/api/gaps.txt", tree / "csrc/api/test.toml"
    assert stubgen.main(["--root", str(tree)]) == 0
    manifest.write_text(MANIFEST.replace("[entry_points]", 'testMore = "unsupported"\n[entry_points]'))
    assert stubgen.main(["--root", str(tree)]) == 1, "stubgen adds no gap by itself"
    assert "libtest.so.1 testMore is unsupported but no known gap" in capsys.readouterr().err
    assert "testMore" not in gaps.read_text()
    manifest.write_text(MANIFEST.replace('testStub = "unsupported"', 'testStub = { status = "noop", reason = "now" }'))
    assert stubgen.main(["--check", "--root", str(tree)]) == 1, "a line of what is supported by now is stale"
    assert stubgen.main(["--root", str(tree)]) == 0
    assert "testStub" not in gaps.read_text()


def test_a_name_of_one_target_and_another_status_in_another(tree: Path) -> None:
    two = MANIFEST.replace("[symbols]", '[target.test2]\nsoname = "libtest.so.2"\nsource = "nowhere"\n[symbols]')
    two = two.replace('testReal = "real"', 'testReal = { status = "real", test2 = "unsupported" }', 1)
    (tree / "csrc/api/test.toml").write_text(
        two.replace('testStub = "unsupported"', 'testStub = { status = "unsupported", only = ["test"] }')
    )
    files = {path.name: text for path, text in stubgen.generate(tree).items()}
    assert "extern void testReal(void);" in files["test_stubs.c"]
    assert 'HL_UNSUPPORTED(testReal, "libtest.so.2", 3)' in files["test2_stubs.c"]
    assert "testStub" not in files["test2.map"] + files["test2_stubs.c"]
    assert "`testReal` (unsupported in test2)" in files["api-coverage.md"]


def test_what_is_generated(tree: Path) -> None:
    files = {path.name: text for path, text in stubgen.generate(tree).items()}
    assert 'HL_UNSUPPORTED(testStub, "libtest.so.1", 3)' in files["test_stubs.c"]
    assert "HL_NOOP(testNoop)" in files["test_stubs.c"]
    assert "extern void testReal(void);" in files["test_stubs.c"]
    assert files["test.map"].splitlines()[1:4] == ["libtest.so.1 {", "global:", "    testReal;"]
    assert '{"testReal", 7000, 1, testStub},\n    {"testReal", 3020, 0, testReal},' in files["entry_points.c"]
    assert "| `testNoop` | because |" in files["api-coverage.md"]


def test_a_noop_may_check_its_arguments(tree: Path) -> None:
    with (tree / "csrc/bridge/test/a.c").open("a") as source:
        source.write("HL_API int testNoop(int a)\n{\n    return !a;\n}\n")
    text = next(text for path, text in stubgen.generate(tree).items() if path.name == "test_stubs.c")
    assert "HL_NOOP" not in text
    assert "extern void testNoop(void);" in text
    assert not list(stubgen.disagreements(tree))


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("", "testReal is real, but csrc/bridge/test does not define it"),
        (
            "HL_API int testReal(int a)\n{}\nHL_API_FAMILY(testOther, int)\n",
            "testOther is defined, but test.toml does not call it real",
        ),
    ],
)
def test_manifest_and_code_must_agree(tree: Path, code: str, problem: str) -> None:
    (tree / "csrc/bridge/test/a.c").write_text(code)
    assert any(problem in line for line in stubgen.disagreements(tree))


@pytest.mark.parametrize(
    "line",
    [
        'testBad = "done"',
        'testBad = { status = "noop" }',
        'testBad = { status = "real", reason = "none needed" }',
        'testBad = { status = "real", since = 3 }',
        'testBad = { status = "real", only = ["test9"] }',
        'testBad = { status = "real", test = "done" }',
    ],
)
def test_bad_statuses_are_refused_by_name(tree: Path, line: str) -> None:
    path = tree / "csrc/api/test.toml"
    path.write_text(MANIFEST.replace("[entry_points]", f"{line}\n[entry_points]"))
    with pytest.raises(stubgen.ManifestError, match=r"test\.toml: testBad"):
        stubgen.load(path)


def test_an_entry_point_needs_its_symbol(tree: Path) -> None:
    path = tree / "csrc/api/test.toml"
    path.write_text(MANIFEST + 'testGone = [[1000, "testGone"]]\n')
    with pytest.raises(stubgen.ManifestError, match="no symbol testGone"):
        stubgen.load(path)


def test_names_of_a_header() -> None:
    header = """
    #define cuFoo cuFoo_v2
    #define cuBar __CUDA_API_PTSZ(cuBar)
    #define CU_CONSTANT CU_OTHER
    CUresult CUDAAPI cuFoo(int a);
    CUresult CUDAAPI cuBar(int a);
    nvmlReturn_t DECLDIR nvmlBaz_v2(void);
    const DECLDIR char* nvmlText(int a);
    #define nvmlBaz nvmlBaz_v2
    """
    assert stubgen.names_of_header(header) == {
        "cuFoo", "cuFoo_v2", "cuBar", "cuBar_ptsz", "nvmlBaz", "nvmlBaz_v2", "nvmlText",
    }  # fmt: skip
