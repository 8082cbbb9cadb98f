"""Trees with holes: links to nowhere, pointers without content, files and folders that may not be opened."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from support.builders import nifti_bytes, pairs_spec, write_files

from medvar_data.errors import CaseRejected, Reason, SourceError
from medvar_data.ingest.find_cases import ingest
from medvar_data.sources.tree import open_tree, read_bytes

IMAGE = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)
LABEL = (IMAGE > 60).astype(np.uint8)
SPEC = replace(pairs_spec(suffix="nii"), case_names="published")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def pair(name):
    return {f"{name}_image.nii": nifti_bytes(IMAGE), f"{name}_label.nii": nifti_bytes(LABEL)}


def found(root):
    """What ingest makes of a folder: keys kept, reasons of the rejects by key."""
    result = ingest(SPEC, open_tree(root), b"s")
    assert result.n_found == len(result.cases) + len(result.rejects)
    return [case.case for case in result.cases], {reject.case: reject.reason for reject in result.rejects}


class TestNotFetched:
    def test_a_link_to_nowhere_is_a_case_without_content(self, tmp_path):
        write_files(tmp_path, {**pair("a"), "b_label.nii": nifti_bytes(LABEL)})
        (tmp_path / "b_image.nii").symlink_to(".git/annex/objects/none.nii")
        assert found(tmp_path) == (["a"], {"b": Reason.NOT_FETCHED})

    def test_a_link_in_a_circle(self, tmp_path):
        write_files(tmp_path, {**pair("a"), "b_label.nii": nifti_bytes(LABEL)})
        (tmp_path / "b_image.nii").symlink_to("b_image.nii")
        assert found(tmp_path) == (["a"], {"b": Reason.NOT_FETCHED})

    def test_a_label_that_leads_nowhere_leaves_its_case_out(self, tmp_path):
        write_files(tmp_path, {**pair("a"), "b_image.nii": nifti_bytes(IMAGE)})
        (tmp_path / "b_label.nii").symlink_to("none")
        assert found(tmp_path) == (["a"], {"b": Reason.NOT_FETCHED})

    @pytest.mark.parametrize("content", [POINTER, b"/annex/objects/MD5E-s1--0.nii\n"])
    @pytest.mark.parametrize("name", ["b_image.nii", "b_label.nii"])
    def test_a_pointer(self, tmp_path, name, content):
        write_files(tmp_path, {**pair("a"), **pair("b"), name: content})
        assert found(tmp_path) == (["a"], {"b": Reason.NOT_FETCHED})
        with pytest.raises(CaseRejected, match="git lfs pull"):
            read_bytes(tmp_path, name)

    def test_nothing_but_links_is_no_error(self, tmp_path):
        for name in ("a_image.nii", "a_label.nii"):
            (tmp_path / name).symlink_to("none")
        assert found(tmp_path) == ([], {"a": Reason.NOT_FETCHED})

    def test_a_linked_folder_and_an_archive_that_are_not_here(self, tmp_path):
        write_files(tmp_path, {**pair("a"), "more.zip": POINTER})
        (tmp_path / "imagesTs").symlink_to("../annex/imagesTs")
        keys, rejects = found(tmp_path)
        assert keys == ["a"]
        assert sorted(key.split("-")[0] for key in rejects) == ["archive", "folder"]
        assert set(rejects.values()) == {Reason.NOT_FETCHED}

    def test_objects_of_git_are_no_cases(self, tmp_path):
        write_files(tmp_path, {**pair("a"), **{f".git/annex/{k}": v for k, v in pair("b").items()}})
        assert found(tmp_path) == (["a"], {})


def as_nobody(root, program):
    """Run a program that may pass by no permission, whoever runs the tests."""
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]
    command = [*(drop if os.geteuid() == 0 else ()), sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
    if done.returncode and "setpriv" in done.stderr:
        pytest.skip("setpriv cannot drop the power to pass by permissions")
    return done.stdout + done.stderr


INGEST = """
from dataclasses import replace
from pathlib import Path
from support.builders import pairs_spec
from medvar_data.ingest.find_cases import ingest
from medvar_data.sources.tree import open_tree
spec = replace(pairs_spec(suffix="nii"), case_names="published")
result = ingest(spec, open_tree(Path({root!r})), b"s")
print([c.case for c in result.cases], [(r.case, r.reason.value) for r in result.rejects])
print([r.detail for r in result.rejects])
"""


class TestNotPermitted:
    @pytest.fixture
    def tree(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        write_files(tmp_path, {**pair("a"), **pair("b"), **{f"shut/{k}": v for k, v in pair("c").items()}})
        yield tmp_path
        (tmp_path / "shut").chmod(0o755)

    def test_a_file(self, tree):
        (tree / "b_label.nii").chmod(0)
        said = as_nobody(tree, INGEST.format(root=str(tree)))
        assert "['a', 'c'] [('b', 'not_permitted')]" in said

    def test_a_folder_is_told_by_its_place(self, tree):
        (tree / "shut").chmod(0)
        said = as_nobody(tree, INGEST.format(root=str(tree)))
        assert "['a', 'b'] [('folder-0', 'not_permitted')]" in said
        assert "(at shut)" in said
        assert str(tree) not in said

    def test_a_folder_that_can_be_listed_alone(self, tree):
        (tree / "shut").chmod(0o444)
        said = as_nobody(tree, INGEST.format(root=str(tree)))
        assert "['a', 'b'] [('c', 'not_permitted')]" in said

    def test_the_folder_given(self, tree):
        (tree / "shut").chmod(0)
        said = as_nobody(tree, INGEST.format(root=str(tree / "shut")))
        assert SourceError.__name__ in said
        assert "allow reading it" in said
