"""What the interpreter's texts and dicts lack of Python's: `engine.c` makes each function here a
method of the type that its name begins with."""

_split = str.split
_startswith = str.startswith
_endswith = str.endswith
_replace = str.replace


def _none_of(text, bad):
    if not text:
        return False
    for c in text:
        if bad(c):
            return False
    return True


def _letter(c):
    return c.lower() != c.upper() or ord(c) > 127


def str__isdigit(self):
    return _none_of(self, lambda c: not "0" <= c <= "9")


def str__isalpha(self):
    return _none_of(self, lambda c: not _letter(c))


def str__isalnum(self):
    return _none_of(self, lambda c: not (_letter(c) or "0" <= c <= "9"))


def str__isspace(self):
    return _none_of(self, lambda c: c not in " \t\n\r\v\f")


def str__isupper(self):
    return self == self.upper() and self != self.lower()


def str__islower(self):
    return self == self.lower() and self != self.upper()


def str__casefold(self):
    return self.lower()


def str__capitalize(self):
    return self[:1].upper() + self[1:].lower()


def str__title(self):
    words = ""
    inside = False
    for c in self:
        words += c.lower() if inside else c.upper()
        inside = _letter(c)
    return words


def str__startswith(self, prefix):
    if not isinstance(prefix, tuple):
        return _startswith(self, prefix)
    for one in prefix:
        if _startswith(self, one):
            return True
    return False


def str__endswith(self, suffix):
    if not isinstance(suffix, tuple):
        return _endswith(self, suffix)
    for one in suffix:
        if _endswith(self, one):
            return True
    return False


def str__removeprefix(self, prefix):
    return self[len(prefix):] if _startswith(self, prefix) else self


def str__removesuffix(self, suffix):
    return self[: len(self) - len(suffix)] if suffix and _endswith(self, suffix) else self


def str__rfind(self, sub):
    at = self.find(sub)
    last = -1
    while at >= 0:
        last = at
        at = self.find(sub, at + 1)
    return last


def str__partition(self, sep):
    at = self.find(sep)
    if at < 0:
        return (self, "", "")
    return (self[:at], sep, self[at + len(sep):])


def str__rpartition(self, sep):
    at = str__rfind(self, sep)
    if at < 0:
        return ("", "", self)
    return (self[:at], sep, self[at + len(sep):])


def str__split(self, sep=None, maxsplit=-1):
    if sep is None:
        words = [word for word in _split(_replace(_replace(_replace(self, "\t", " "), "\n", " "), "\r", " "), " ") if word]
        if maxsplit < 0 or len(words) <= maxsplit:
            return words
        rest = self.lstrip()
        for word in words[:maxsplit]:
            rest = rest[len(word):].lstrip()
        return words[:maxsplit] + [rest.rstrip()]
    parts = _split(self, sep)
    if maxsplit < 0 or len(parts) <= maxsplit + 1:
        return parts
    return parts[:maxsplit] + [sep.join(parts[maxsplit:])]


def str__rsplit(self, sep=None, maxsplit=-1):
    parts = str__split(self, sep)
    if maxsplit < 0 or len(parts) <= maxsplit + 1:
        return parts
    keep = len(parts) - maxsplit
    return [(" " if sep is None else sep).join(parts[:keep])] + parts[keep:]


def str__splitlines(self):
    lines = _split(_replace(_replace(self, "\r\n", "\n"), "\r", "\n"), "\n")
    return lines[:-1] if lines and lines[-1] == "" else lines


def str__replace(self, old, new, count=-1):
    if count < 0:
        return _replace(self, old, new)
    parts = str__split(self, old, count)
    return new.join(parts)


def dict__setdefault(self, key, default=None):
    if key not in self:
        self[key] = default
    return self[key]


def dict__popitem(self):
    keys = list(self.keys())
    if not keys:
        raise KeyError("popitem(): dictionary is empty")
    return (keys[-1], self.pop(keys[-1]))
