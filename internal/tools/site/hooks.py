"""What MkDocs asks while it makes the site."""

import logging
import re
from pathlib import Path

log = logging.getLogger("mkdocs.hooks.site")
link = re.compile(r"(?<=\]\()[^)\s:]+(?=\))")


def on_page_markdown(markdown, page, config, files):
    """Links that leave docs/ lead to the repository's page of the file, which has to be there."""
    docs = Path(config.docs_dir)
    tree = docs.parent

    def outside(found):
        path, hash, fragment = found[0].partition("#")
        file = (docs / page.file.src_uri).parent.joinpath(path).resolve()
        if not path or file.is_relative_to(docs):
            return found[0]
        if not file.exists() or not file.is_relative_to(tree):
            log.warning("%s links to %s, which isn't there", page.file.src_uri, path)
            return found[0]
        return f"{config.repo_url}/blob/main/{file.relative_to(tree)}{hash}{fragment}"

    return link.sub(outside, markdown)
