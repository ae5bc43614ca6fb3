"""What the documents show is what happens."""

import asyncio
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest

from tests.store_servers import Postgres

from .session import ROOT, Session, blocks

DOCUMENTS = [path for path in sorted(ROOT.glob("*.md")) if path.name != "CHANGELOG.md"]
DOCUMENTS += [path for folder in ("docs", "examples", "benchmarks") for path in sorted((ROOT / folder).glob("**/*.md"))]


def database_of(postgres: Postgres, name: str) -> str:
    """A new one."""

    async def create() -> None:
        connection = await asyncpg.connect(postgres.url)
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()

    asyncio.run(create())
    return postgres.url.rpartition("/")[0] + f"/{name}"


@pytest.fixture
def servers(request: pytest.FixtureRequest) -> dict[str, Callable[[], str]]:
    """By the address that the documents have for one; started for a document that needs it."""
    return {
        "amqp://localhost/": lambda: str(request.getfixturevalue("rabbit").empty_url()),
        "postgresql://localhost/postgres": lambda: database_of(
            request.getfixturevalue("postgres"), f"documents_{uuid.uuid4().hex}"
        ),
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_of_the_document_runs_as_shown(
    document: Path, tmp_path: Path, servers: dict[str, Callable[[], str]]
) -> None:
    if document.is_relative_to(ROOT / "examples"):  # these speak of the files beside them
        shutil.copytree(document.parent, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    with Session(tmp_path, servers) as session:
        for block in blocks(document):
            session.play(block)


def test_a_document_that_lies_is_found_out(tmp_path: Path) -> None:
    document = tmp_path / "lie.md"
    document.write_text("```console\n$ echo tea\ncoffee\n```\n")
    with Session(tmp_path) as session, pytest.raises(AssertionError, match="should have been"):
        session.play(*blocks(document))


@pytest.mark.parametrize(
    "block", ["    echo tea", "~~~\necho tea\n~~~", "- so:\n\n    ```\n    echo tea\n    ```", "```"]
)
def test_a_block_that_nothing_would_run_is_found_out(block: str, tmp_path: Path) -> None:
    document = tmp_path / "quiet.md"
    document.write_text(f"Do it:\n\n{block}\n\nThen go on.\n")
    with pytest.raises(AssertionError, match="has a block"):
        blocks(document)


def test_links_within_the_documents_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
