"""What the documents show is what happens."""

import re
import shutil
from pathlib import Path

import pytest

from .session import ROOT, Session, blocks

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
DOCUMENTS += sorted((ROOT / "examples").glob("**/*.md"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_of_the_document_runs_as_shown(
    document: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if document.is_relative_to(ROOT / "examples"):  # these speak of the files beside them
        shutil.copytree(document.parent, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    with Session(tmp_path, lambda: str(request.getfixturevalue("rabbit").empty_url())) as session:
        for block in blocks(document):
            session.play(block)


def test_a_document_that_lies_is_found_out(tmp_path: Path) -> None:
    document = tmp_path / "lie.md"
    document.write_text("```console\n$ echo tea\ncoffee\n```\n")
    with Session(tmp_path) as session, pytest.raises(AssertionError, match="should have been"):
        session.play(*blocks(document))


def test_links_within_the_documents_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
