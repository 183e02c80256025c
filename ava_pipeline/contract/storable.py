"""Texts that come from anywhere, such as a command line or a file's name, as files in UTF-8 can hold them."""


def storable(text: str) -> str:
    r"""The text, what is no UTF-8 of it escaped: Python gives a byte that it cannot decode as `\udce9`, say."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
