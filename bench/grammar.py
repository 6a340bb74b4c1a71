"""What a grammar costs: decoding free, under a schema and under a regex that allows anything, in turns.

python bench/grammar.py demo-0.5b --rounds 2
"""

from __future__ import annotations

import argparse
import statistics
import time

from qwenkit import Grammar, Message, Qwen

SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 80},
        "year": {"type": "integer", "minimum": 1800, "maximum": 2100},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}, "minItems": 3, "maxItems": 8},
        "rating": {"type": "number", "minimum": 0, "maximum": 10},
        "summary": {"type": "string", "maxLength": 600},
    },
    "required": ["title", "year", "tags", "rating", "summary"],
    "additionalProperties": False,
}
ASKED = (
    "Describe the film Metropolis as JSON with title, year, tags, rating and a summary of several sentences."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="demo-0.5b")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=110)
    asked = parser.parse_args()
    model = Qwen.load(asked.model)
    kinds = {
        "free": None,
        "schema": Grammar.json_schema(SCHEMA),
        "regex of anything": Grammar.regex(r"(.|\n)*"),
    }
    for name, grammar in kinds.items():
        if grammar is not None:
            begin = time.perf_counter()
            model.engine.vocabulary.grammars.compile(grammar)
            print(f"compiling the {name}: {1e3 * (time.perf_counter() - begin):.1f} ms")
    speeds: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(asked.rounds):
        for name, grammar in kinds.items():
            done = model.complete_chat(
                [Message("user", ASKED)], max_tokens=asked.max_tokens, temperature=0, grammar=grammar
            )
            speeds[name].append((done.usage.completion_tokens - 1) / done.timings.decode_s)
    for name, found in speeds.items():
        print(f"{name}: {statistics.median(found):.1f} tok/s ({min(found):.1f}-{max(found):.1f})")

    matcher = model.engine.vocabulary.grammars.compile(kinds["schema"]).matcher(())  # type: ignore[arg-type]
    times = []
    for token in model.tokenizer.encode('{"title": "Metropolis", "year": 1927'):
        begin = time.perf_counter()
        matcher.accept(token)
        times.append(1e6 * (time.perf_counter() - begin))
    print(f"next mask: median {statistics.median(times):.0f} us, worst {max(times):.0f}")


if __name__ == "__main__":
    main()
