"""What the site's builder asks for: the repository's own pages under their own paths, notebooks, and made pages.

Every file keeps its path in the repository, so that a link is right on the site and in a clone alike.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from notebooks import as_markdown, run_all

ROOT = Path(__file__).resolve().parents[2]
HERE = "scripts/docs"
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[#)])")
SECTION = re.compile(r"<!-- section (\S+)#(\S+) -->\n")
ROOMS = ("rd_hf", "rd_hf.embedding", "rd_hf.fitting", "rd_hf.search", "rd_hf.hub", "rd_hf.training")


def readmes() -> list[str]:
    """Paths of all pages in the repository."""
    rooms = (path for room in ("hub_configs", "rd_hf", "scripts") for path in (ROOT / room).rglob("*.md"))
    return sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *rooms))


def targets(page: str, markdown: str) -> Iterator[tuple[str, str]]:
    """Links of a page to paths in the repository: as they are written, and from its root."""
    for target in LINK.findall(markdown):
        if "://" not in target and not target.startswith("mailto:"):
            yield target, normpath(str(PurePosixPath(page).parent / target))


def first_sentence(path: Path) -> str:
    """What a module or a package says of itself."""
    path = path / "__init__.py" if path.is_dir() else path
    code = path.read_text(encoding="utf-8") if path.suffix == ".py" and path.exists() else ""
    words = ast.get_docstring(ast.parse(code))
    return (words or "").partition("\n\n")[0].replace("\n", " ")


def listing(folder: str) -> str:
    """A page of what a folder without one holds."""
    inside = (path for path in sorted((ROOT / folder).iterdir()) if path.name != "__init__.py" and first_sentence(path))
    rows = (f"| `{path.name}` | {first_sentence(path)} |" for path in inside)
    return "\n".join((f"# {folder}", "", first_sentence(ROOT / folder), "", "| file | what |", "|---|---|", *rows, ""))


def reference(room: str) -> str:
    """A page of the public names of a room; of those that another room has, the front door only names them."""
    module = importlib.import_module(room)
    lines = [f"# {room}", "", module.__doc__ or "", ""]
    homes = {name: home for home in ROOMS[1:] for name in importlib.import_module(home).__all__}
    for name in module.__all__:
        if name.startswith("__"):
            continue
        elsewhere = room == ROOMS[0] and name in homes
        lines += [f"- [`{name}`][{homes[name]}.{name}]" if elsewhere else f"::: {room}.{name}", ""]
    return "\n".join(lines)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put the repository's pages, what they link to, and the pages that are made here, into the site."""
    found = Files([one for one in files if one.src_dir != config.docs_dir])
    pages = readmes()
    made: dict[str, str | bytes] = {f"reference/{room}.md": reference(room) for room in ROOMS}
    for name, notebook in run_all().items():
        text, pictures = as_markdown(name, notebook)
        made[f"{HERE}/notebooks/{name}.md"] = text
        made |= {f"{HERE}/notebooks/{picture}": content for picture, content in pictures.items()}
    texts = {page: (ROOT / page).read_text(encoding="utf-8") for page in pages}
    texts |= {page: text for page, text in made.items() if isinstance(text, str)}
    linked = {path for page, text in texts.items() for _, path in targets(page, text)}
    folders = {path for path in linked if (ROOT / path).is_dir() and f"{path}/README.md" not in pages}
    made |= {f"{folder}/files.md": listing(folder) for folder in sorted(folders)}
    paths = {path for path in linked if (ROOT / path).is_file() and f"{path.removesuffix('.ipynb')}.md" not in made}
    for path in sorted({*pages, *paths}):
        found.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
    for path, content in made.items():
        found.append(File.generated(config, path, content=content))
    for one in found:
        if one.src_uri.startswith(f"{HERE}/"):
            one.dest_uri = one.dest_uri.removeprefix(f"{HERE}/").removeprefix("pages/")
    return found


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Fill in sections of other pages, and lead links to folders and notebooks to their pages."""
    here = page.file.src_uri
    for found in SECTION.finditer(markdown):
        markdown = markdown.replace(found[0], section(*found.groups()))
    for target, path in set(targets(here, markdown)):
        for page_of in (f"{path}/README.md", f"{path}/files.md", f"{path.removesuffix('.ipynb')}.md"):
            if files.get_file_from_path(page_of):
                found_at = relpath(page_of, str(PurePosixPath(here).parent))
                markdown = re.sub(rf"\]\({re.escape(target)}(?=[#)])", f"]({found_at}", markdown)
                break
    return markdown


def section(page: str, heading: str) -> str:
    """What stands on a page below a heading, down to the next."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.split(r"^## ", re.split(rf"^## {heading}\n", text, flags=re.M | re.I)[1], flags=re.M)[0]
