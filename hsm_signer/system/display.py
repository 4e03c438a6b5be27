"""Make untrusted text safe to show: the name of a device or file cannot control a terminal or forge a line."""


def displayable(text: str) -> str:
    """Return `text` on one line, with an escape such as ``\\x1b`` for every invisible character.

    Invisible are control characters (C0 and C1, ECMA-48), line and paragraph separators, direction overrides and other
    format characters, lone surrogates (bytes of a file name that are not UTF-8), and all spaces but the plain one.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def displayable_lines(text: str) -> str:
    """Do the same, but keep line feeds. Make untrusted parts displayable before you insert them."""
    return "\n".join(map(displayable, text.split("\n")))
