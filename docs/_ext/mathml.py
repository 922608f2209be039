"""Formulas as MathML, which browsers draw themselves: no script, no network, no LaTeX."""

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging

LONG = 25  # characters of TeX, some half of which are seen
THIN = '<mspace width="0.167em" />'
WORDS = ("KL", "softmax", "sd", "id", "Var", "tr", "diag", "lower", "channel", "calibrated", "rate")
BAR = '<mo stretchy="false">&#x0007C;</mo>'
CLOSE_BAR = '<mo stretchy="false" lspace="0.06em" rspace="0.06em">&#x0007C;</mo>'
NAMES = "(?:log|exp|det|arg)"
AFTER = re.compile(rf"(?<!<mrow>)(?<!&#x00028;</mo>)(?=<mi>{NAMES}</mi>)")
BEFORE = re.compile(rf"<mi>{NAMES}</mi>(?!<mo[^>]*>&#x00028;)")


def to_mathml(formula: str, display: str) -> str:
    """MathML of a formula, with what the converter lacks.

    Names of functions get thin spaces, bars hardly any, words their letters in one piece; ``arg`` and the tilde are
    known. A command that the converter does not know is a warning.
    """
    mathml = convert(formula.strip().replace("\\arg", "\\mathrm{arg}"), display=display)
    for word in WORDS:
        mathml = mathml.replace("".join(f"<mi>{letter}</mi>" for letter in word), f"<mi>{word}</mi>")
    mathml = re.sub(r'(?:<mi mathvariant="normal">(\w)</mi>){2,}', _in_one_piece, mathml)
    mathml = BEFORE.sub(rf"\g<0>{THIN}", AFTER.sub(THIN, mathml))
    mathml = mathml.replace("<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>").replace(BAR, CLOSE_BAR)
    if re.search(r"\\|<mi>&</mi>", mathml):
        logging.getLogger(__name__).warning("the formula %r has a command that is not known", formula)
    return mathml


def _in_one_piece(letters: re.Match[str]) -> str:
    return f"<mi>{''.join(re.findall('>(.)<', letters[0]))}</mi>"


def inline(translator: Any, node: nodes.math) -> None:
    """Write a formula in a line of text; a long one scrolls where the page is narrower."""
    formula = to_mathml(node.astext(), "inline")
    wide = len(node.astext()) > LONG
    translator.body.append(f'<span class="math-wide" tabindex="0">{formula}</span>' if wide else formula)
    raise nodes.SkipNode


def block(translator: Any, node: nodes.math_block) -> None:
    """Write a formula of its own, which scrolls where the page is narrower."""
    translator.body.append(f'<div class="math-block" tabindex="0">{to_mathml(node.astext(), "block")}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
