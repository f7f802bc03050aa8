r"""Papers' LaTeX: comments, includes, macros and cuts, beside pandoc, which reads LaTeX and expands macros in its own way."""

import subprocess
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources import latex
from pipeline.sources.latex import Rejected, expanded, main_file, paper, without_comments

HEAD = "\\documentclass{article}\n"


def text_of(preamble: str, body: str) -> str:
    """The text of a paper with one section."""
    return paper({"main.tex": f"{HEAD}{preamble}\\begin{{document}}\n\\section{{S}}\n{body}\n\\end{{document}}"}).text


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("a% comment\nb", "ab"),
        ("a % comment\n   b", "a b"),
        ("a\\% b% c", "a\\% b"),
        ("a\\\\% c\nb", "a\\\\b"),
        ("a% c\n\nb", "a\n\nb"),
        ("a\n  % whole line\nb", "a\nb"),
        ("% only", ""),
        ("\\verb|50% \\x| a % c", "\\verb|50% \\x| a "),
        ("\\url{http://a/%7Eb} % c", "\\url{http://a/%7Eb} "),
        ("\\href{http://a%20b}{50\\%} % c", "\\href{http://a%20b}{50\\%} "),
        ("\\begin{verbatim}\n% kept\n\\end{verbatim}% c", "\\begin{verbatim}\n% kept\n\\end{verbatim}"),
        (
            "\\begin{lstlisting}[language=C]\nx % y;\n\\end{lstlisting}",
            "\\begin{lstlisting}[language=C]\nx % y;\n\\end{lstlisting}",
        ),
        ("a\\begin{comment} b \\end{comment}c", "ac"),
        ("a\\iffalse b \\ifx c\\fi d\\fi e", "a e"),
        ("a\\iffalse b\\else c", "a c"),
        ("a\\end{document} b", "a\\end{document}"),
        ("\\begin{verbatim} never closed % c\n", "\\begin{verbatim} never closed "),
    ],
)
def test_comments_go_as_tex_reads_them(given: str, wanted: str) -> None:
    held: list[str] = []
    assert latex._release(without_comments(given, held), held) == wanted


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("\\newcommand{\\R}{\\mathbb{R}}$\\R^n$", "$\\mathbb{R}^n$"),
        ("\\newcommand\\R{\\mathbb{R}}$\\R$", "$\\mathbb{R}$"),
        ("\\newcommand*{\\v}[1]{\\mathbf{#1}}\\v{x}\\v y\\v\\alpha", "\\mathbf{x}\\mathbf{y}\\mathbf{\\alpha}"),
        ("\\newcommand{\\n}[2][2]{|#2|_{#1}}\\n{x} \\n[1]{y}", "|x|_{2} |y|_{1}"),
        ("\\newcommand{\\n}[1][d]{<#1>}\\n \\n[e]", "<d> <e>"),
        ("\\def\\pair#1,#2.{(#1;#2)}\\pair a,{b,c}.", "(a;b,c)"),
        ("\\def\\x{y}\\x z", "yz"),
        ("\\def\\x{y}\\x\\ z", "y\\ z"),
        ("\\def\\x{y\\xspace}\\x z\\x.", "y zy."),
        ("\\def\\a{\\alpha}\\a b", "\\alpha b"),
        ("\\def\\b#1{\\beta#1}\\b{c}", "\\beta c"),
        ("\\def\\a{\\b}\\def\\b{\\c}\\def\\c{d}\\a", "d"),
        ("\\newcommand{\\vect}[1]{\\mathbf{#1}}\\newcommand{\\vv}{\\vect}\\vv{x}", "\\mathbf{x}"),
        ("\\let\\oldphi\\phi\\renewcommand{\\phi}{\\varphi}\\phi\\oldphi", "\\varphi\\phi"),
        ("\\def\\a{1}\\let\\b=\\a\\def\\a{2}\\a\\b", "21"),
        ("\\DeclareMathOperator*{\\argmax}{arg\\,max}\\argmax", "\\operatorname*{arg\\,max}"),
        ("\\long\\def\\x#1{#1#1}\\x{ab}", "abab"),
        ("\\def\\be{\\begin{equation}}\\def\\ee{\\end{equation}}\\be x\\ee", "\\begin{equation}x\\end{equation}"),
        ("\\renewcommand{\\section}[1]{nothing}\\section{A}", "\\renewcommand{\\section}[1]{nothing}\\section{A}"),
        ("\\def\\p{\\ifmmode a\\else b\\fi}\\p", "\\def\\p{\\ifmmode a\\else b\\fi}\\p"),
        ("\\def\\p{\\@ifnextchar a}\\p", "\\def\\p{\\@ifnextchar a}\\p"),
        ("\\def\\x{1}\\def\\x{\\csname a\\endcsname}\\x", "\\def\\x{\\csname a\\endcsname}\\x"),
        ("\\def\\v#1{<#1>}a\\v", "a\\v"),
        ("{\\def\\v#1{<#1>}\\v}", "{\\v}"),
        ("\\newcommand", "\\newcommand"),
        ("\\def\\x", "\\def\\x"),
        ("\\def\\x#1{#1", "\\def\\x#1{#1"),
    ],
)
def test_macros_are_expanded_as_tex_reads_them(given: str, wanted: str) -> None:
    assert expanded(given) == wanted


def test_macros_from_everywhere_reach_the_text() -> None:
    files = {
        "paper/main.tex": HEAD + "\\usepackage{mine,journal}\n\\input{defs}\n\\title{On \\X\\\\ and more}\n\\begin{document}\n"
        "\\maketitle\nfront \\include{sections/one}\\import{sections/}{two}\n\\bibliography{refs}\n\\end{document}\nbehind",
        "paper/defs.tex": "\\newcommand{\\X}{$x$}% a comment\n",
        "paper/mine.sty": "\\newcommand{\\Y}{$y$}",
        "paper/journal.sty": "\\ProvidesPackage{journal}\\newcommand{\\Z}{$z$}",
        "paper/sections/one.tex": "\\section{One} \\X\\Y\\Z % gone\n\\input missing\n",
        "paper/sections/two.tex": "\\section{Two}\n\\begin{thebibliography}{1}\\bibitem{a} A.\\end{thebibliography} end",
    }
    found = paper(files)
    assert found.title == "On $x$ and more"
    assert found.text == "\\section{One} $x$$y$\\Z\n\\section{Two}\n end"


def test_the_text_begins_with_the_first_section_or_behind_the_front() -> None:
    front = HEAD + "\\begin{document}\\title{T}\\maketitle\\begin{abstract}A\\end{abstract}"
    assert paper({"a.tex": front + "x\\section*{One}y\\end{document}"}).text == "\\section*{One}y"
    assert paper({"a.tex": front + "x\\end{document}"}).text == "x"
    assert paper({"a.tex": "\\magnification 1000 plain \\TeX\\bye"}).text == "\\magnification 1000 plain \\TeX\\bye"
    assert paper({"a.tex": front + "\\chapter{One}y"}).text == "\\chapter{One}y"


def test_the_main_file_is_found() -> None:
    whole = HEAD + "\\begin{document}x\\end{document}"
    assert main_file({"notes.tex": "x", "ms.tex": whole}) == "ms.tex"
    assert main_file({"a.tex": HEAD + "\\subfile{b}\\begin{document}", "b.tex": whole + "and more"}) == "a.tex"
    assert main_file({"b.tex": whole, "a.tex": whole}) == "a.tex"
    assert main_file({"a.tex": whole, "b.tex": whole + "longer"}) == "b.tex"
    assert main_file({"only.tex": "plain", "x.sty": HEAD}) == "only.tex"
    with pytest.raises(Rejected, match="no_main_file"):
        main_file({"a.tex": "x", "b.tex": "y"})
    with pytest.raises(Rejected, match="empty"):
        paper({"a.tex": "%auto-ignore\n"})
    assert paper({"a.tex": whole, "b.tex": HEAD + "\\begin{document}other, longer\\end{document}"}, "a.tex").text == "x"


BOMBS = {
    "doubles": "\\def\\a{\\a\\a}\\a",
    "itself": "\\def\\a{\\a}\\a",
    "billion": "".join(f"\\def\\{chr(98 + n)}{{{chr(92)}{chr(97 + n)}{chr(92)}{chr(97 + n)}}}" for n in range(24)) + "\\y",
    "nested": "\\def\\a#1{#1#1#1#1}" + "\\a{" * 60 + "x" + "}" * 60,
    "unclosed arguments": "\\def\\a#1{x}" + "\\a{" * 100_000,
    "unclosed delimiters": "\\def\\a#1.{x}" + "\\a{}" * 100_000,
    "unclosed verbatim": "\\begin{verbatim}" * 50_000,
    "unclosed addresses": "\\url{" * 200_000,
    "titles": "\\title[" * 200_000,
    "spaces": " " * 2_000_000 + "x",
    "itself included": "\\input{main}" * 100_000,
    "conditions": "\\iffalse" * 200_000,
    "bibliographies": "\\begin{thebibliography}" * 100_000,
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_bombs_end(bomb: str) -> None:
    try:
        assert len(text_of("", bomb)) <= len(bomb) + 100
    except Rejected as rejected:
        assert str(rejected) in ("macros_without_end", "too_large", "empty")


def test_what_is_too_large_is_refused() -> None:
    with pytest.raises(Rejected, match="too_large"):
        paper({"main.tex": HEAD + "x" * latex.MAX_TEXT})
    large = {"main.tex": HEAD + "\\input{a}" * 100, "a.tex": "x" * (latex.MAX_TEXT // 50)}
    with pytest.raises(Rejected, match="too_large"):
        paper(large)


@given(
    st.lists(
        st.sampled_from(
            ["\\def", "\\newcommand", "\\a", "\\b", "{", "}", "[", "]", "#1", "1", "x", " ", "\n", "%", "\\", "\\let"]
        ),
        max_size=40,
    )
)
def test_no_text_makes_it_fail(parts: list[str]) -> None:
    try:
        text_of("", "".join(parts))
    except Rejected as rejected:
        assert str(rejected) in ("macros_without_end", "empty")


@given(st.text(st.characters(blacklist_characters="\\%\0"), max_size=200))
def test_text_without_commands_stays(text: str) -> None:
    held: list[str] = []
    assert without_comments(text, held) == text == expanded(text)
    assert not held


PANDOC = r"""Let $\R^n$ be a \emph{space} of \kind{real} numbers; 100\% of $\norm{x}$ and $\norm[1]{y}$ are % not
defined. See \verb|%\R| and \foo. \begin{quote} A quote in \emph{\kind{two}} parts. \end{quote}
\begin{itemize} \item first $\vv x$ \item second \end{itemize}"""
MACROS = r"""\newcommand{\R}{\mathbb{R}} \newcommand{\norm}[2][2]{|#2|_{#1}} \newcommand{\kind}[1]{\textbf{#1}}
\newcommand{\foo}{the \kind{foo}} \newcommand{\vv}{\mathbf}
"""


def test_pandoc_reads_the_same(program: Callable[[str], str]) -> None:
    pandoc = program("pandoc")

    def plain(text: str) -> str:
        command = [pandoc, "-f", "latex", "-t", "plain", "--wrap=none", "--sandbox"]
        return subprocess.run(command, input=text, capture_output=True, text=True, check=True, timeout=60).stdout

    ours = text_of(MACROS, PANDOC)
    assert "\\R" not in ours.replace("\\verb|%\\R|", "")
    assert "\\norm" not in ours
    assert plain(ours).split() == plain(f"{MACROS}\n\\section{{S}}\n{PANDOC}").split()
