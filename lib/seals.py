"""What small files carry to show that they are as they were written: records, notes and rows of a table."""

import hashlib
import json
import zlib


def seal(record: dict, times: bool = False) -> str:
    """A hash of a record; without its times, it says whether two records are of the same work."""

    def plain(values: dict) -> dict:
        passed_over = ("seal",) if times else ("seal", "seconds", "peak")
        return {name: value for name, value in values.items() if not name.startswith(passed_over)}

    facts = record.get("facts")
    told = plain(record) | ({"facts": plain(facts)} if isinstance(facts, dict) else {})
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def sealed(value: dict, indent: int | None = None) -> str:
    """A record as JSON with its seal."""
    return json.dumps(value | {"seal": seal(value, times=True)}, indent=indent)


def unsealed(text: str | bytes, strict: bool = False) -> dict:
    """What `sealed` was given, or ValueError. Files of older releases have no seal, which strict takes for damage."""
    try:
        value = json.loads(text)
        found = value.pop("seal", None)
    except (TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no record: {error}") from None
    if found not in ((seal(value, times=True), seal(value)) if strict or found else (None,)):
        raise ValueError("its seal is not that of its content")
    return value


def row_seal(row: dict) -> str:
    """Of a table's row whose values are text. A CRC, as a million rows are to be read soon."""
    return f"{zlib.crc32(chr(0).join(row.values()).encode('utf-8', 'surrogateescape')):08x}"
