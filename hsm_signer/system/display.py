"""Text from elsewhere, made fit to be shown: no name of a device or a file steers a terminal or forges a line."""


def displayable(text: str) -> str:
    """Return `text` on one line, with an escape such as ``\\x1b`` for every character that does not show itself.

    These are control characters (C0 and C1, ECMA-48), line and paragraph separators, overrides of the writing direction
    and other format characters, lone surrogates (octets of a file name that are not UTF-8), and blanks other than the
    space.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def displayable_lines(text: str) -> str:
    """Return `text` likewise, with its line feeds: what is put into its lines is made displayable before."""
    return "\n".join(map(displayable, text.split("\n")))
