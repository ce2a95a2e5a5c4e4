"""How numbers, moments and values read on a page: the templates' filters."""

from datetime import datetime, timedelta
from typing import Any

_THIN = "\u202f"  # narrow space that does not break


def count(number: float) -> str:
    """Write a whole number with its thousands apart, 20 000."""
    return f"{int(number):,}".replace(",", _THIN)


def bytes_(number: float) -> str:
    """Write an amount of bytes in the decimal unit that fits, 12.8 MB."""
    size, units = float(number), ["PB", "TB", "GB", "MB", "kB", "B"]
    while size >= 999.5 and len(units) > 1:
        size, _ = size / 1000, units.pop()
    whole = units[-1] == "B" or size >= 99.95
    return f"{size:.0f}{_THIN}{units[-1]}" if whole else f"{size:.1f}{_THIN}{units[-1]}"


def utc(moment: datetime) -> str:
    """Write a moment to the minute."""
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def ago(moment: datetime, now: datetime) -> str:
    """Say how long ago a moment was, coarsely, so that a page changes only when something did."""
    passed = now - moment
    if passed < timedelta(minutes=1):
        return "just now"
    if passed < timedelta(minutes=90):
        return f"{passed // timedelta(minutes=1)}{_THIN}min ago"
    if passed < timedelta(hours=48):
        return f"{passed // timedelta(hours=1)}{_THIN}h ago"
    return f"{passed.days}{_THIN}d ago"


def span(passed: timedelta) -> str:
    """Write a length of time in its two largest units, coarsely."""
    minutes = passed // timedelta(minutes=1)
    if minutes < 1:
        return f"{passed.total_seconds():.0f}{_THIN}s"
    if minutes < 60:
        return f"{minutes}{_THIN}min"
    if minutes < 48 * 60:
        return f"{minutes // 60}{_THIN}h {minutes % 60}{_THIN}min"
    return f"{minutes // 1440}{_THIN}days"


def figure(number: float | None) -> str:
    """Write a measured number with three digits that count, a dash where there is none."""
    if number is None:
        return "–"
    text = f"{number:.3g}"
    return f"{number:.0f}" if "e+" in text else text


def sentence(text: str) -> str:
    """Begin words with a capital, and leave the others as they are."""
    return text[:1].upper() + text[1:]


def short(text: object) -> str:
    """Cut what looks like a digest, or is long, to what a person compares."""
    words = str(text)
    if len(words) == 64 and all(c in "0123456789abcdef" for c in words):
        return words[:12]
    return words if len(words) <= 200 else words[:199] + "…"


def plain(value: Any) -> str:
    """Write a JSON value as words: lists with commas, mappings with colons, nothing as a dash."""
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return count(value)
        case list() | tuple() if value:
            return ", ".join(plain(part) for part in value)
        case dict() if value:
            return "; ".join(f"{name}: {plain(part)}" for name, part in value.items())
        case _:
            return str(value) if value or isinstance(value, float) else "–"
