"""What completion servers put into their answers, each under names of its own."""

import json
from typing import Any

__all__ = ["error_message", "reported_stop_text", "seconds_to_wait"]


def error_message(text: str) -> str:
    """What a server says of a refused request, without the request itself, which some repeat."""
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = None
    found: Any = parsed
    while isinstance(found, dict):
        found = next((found[name] for name in ("error", "message", "detail", "msg") if found.get(name)), None)
    if isinstance(found, list):  # FastAPI's: where and what, a dictionary each
        found = "; ".join(
            f"{'.'.join(map(str, one.get('loc', ())))}: {one.get('msg', '')}" if isinstance(one, dict) else str(one)
            for one in found
        )
    return " ".join(str(found or text).split())[:500].rstrip(".") or "no message"


def reported_stop_text(choice: dict[str, Any]) -> str | None:
    """The stop text that the server says it stopped at: vLLM's, SGLang's and llama.cpp's name for it."""
    reported = (choice.get(name) for name in ("stop_reason", "matched_stop", "stopping_word"))
    return next((text for text in reported if isinstance(text, str) and text), None)


def seconds_to_wait(text: str | None) -> float:
    """Of a Retry-After header; 0 where it is absent or a date."""
    return float(text) if text and text.isdecimal() else 0.0
