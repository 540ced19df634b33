"""The reference page says what the code says, of every kind."""

from ttreg_interp.interventions import Intervention, Selector

from .reference import PAGE, kinds, page


def test_the_page_is_what_the_docstrings_say():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tests.interventions.reference"


def test_every_kind_has_a_formula_or_words_fields_an_example_and_its_refusals():
    text = page()
    for kind in (*kinds(Intervention), *kinds(Selector)):
        section = text.partition(f"\n### {kind.__name__}\n")[2].partition("\n### ")[0]
        assert len(section.split()) > 5, kind
        if "| field |" in section and issubclass(kind, Intervention):
            assert "Refused: " in section, kind
            assert ">>> " in section or kind.__name__ == "Sequence", kind
