"""The one error of this package."""


class WireError(ValueError):
    """Bytes that are not what they should be: cut, damaged, foreign or of another format."""


class SignatureError(WireError):
    """Bytes that are intact and not signed by the key asked for."""
