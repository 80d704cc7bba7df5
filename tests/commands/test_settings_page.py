"""The page of every setting says what `raypp/config/` says."""

import re
from pathlib import Path

from pydantic import BaseModel

from raypp.commands.settings_page import settings_page
from raypp.config import Experiment
from raypp.config.fields import DISCRIMINATORS, models_in

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


def test_the_page_is_what_the_settings_say() -> None:
    remedy = "make it anew: python -m raypp.commands.settings_page > docs/settings.md"
    assert PAGE.read_text(encoding="utf-8") == settings_page(), remedy


def test_every_setting_is_described() -> None:
    page = " ".join(settings_page().split())
    models: list[type[BaseModel]] = [Experiment]
    for model in models:  # grows meanwhile
        for name, field in model.model_fields.items():
            models += [each for each in models_in(field.annotation) if each not in models]
            if name not in DISCRIMINATORS:  # each of whose values is a heading
                assert field.description, f"{model.__name__}.{name} has no docstring"
                described = rf"- \*\*`{name}`\*\*: (?:(?!- \*\*).)*? {re.escape(' '.join(field.description.split()))}"
                assert re.search(described, page), f"{model.__name__}.{name}"
    assert len(models) > 30


def test_links_lead_to_sections() -> None:
    page = settings_page()
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = set(re.findall(r"\]\(#(.*?)\)", page))
    assert links
    assert links <= anchors
    assert len(headings) == len(set(headings)), "a link leads to one place"


def test_what_a_method_changes_stands_with_it() -> None:
    """Settings that all methods share are described once, and again only where a method has another default."""
    page = settings_page()
    shared, *methods = re.split(r"^### pruning, method: ", page.partition("\n## pruning\n")[2], flags=re.MULTILINE)
    assert "**`final_warmup`**: whole number at least 0; default `2`" in shared
    changed = [method.partition("\n")[0] for method in methods if "**`final_warmup`**" in method.partition("\n### ")[0]]
    assert changed == ["fisher"]
    assert "`{scale: 2.197}`" in next(method for method in methods if method.startswith("l0"))
