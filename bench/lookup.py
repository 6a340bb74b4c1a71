"""What guessing from the text itself gains where a reply copies: a file is to be repeated with one change.

    python bench/lookup.py [MODEL] [--file PYTHON_FILE] [--max-tokens N] [--rounds N]

Greedy, with and without guesses in turns, each in a model of its own over the same weights; the two replies
have to be equal. Tokens a second count from the first token to the last.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from qwenkit import Qwen
from qwenkit.core import Message

_TASK = (
    "Rename the variable `{old}` to `{new}` in this file and repeat the whole file:\n\n```python\n{text}\n```"
)
_FILE = '''\
class Account:
    """Money that belongs to someone."""

    def __init__(self, owner: str, balance: int = 0) -> None:
        self.owner = owner
        self.balance = balance
        self.history = []

    def deposit(self, amount: int) -> None:
        if amount <= 0:
            raise ValueError("A deposit has to be positive.")
        self.balance += amount
        self.history.append(("deposit", amount))

    def withdraw(self, amount: int) -> None:
        if amount <= 0:
            raise ValueError("A withdrawal has to be positive.")
        if amount > self.balance:
            raise ValueError("There is not enough money in this account.")
        self.balance -= amount
        self.history.append(("withdraw", amount))

    def transfer(self, other: "Account", amount: int) -> None:
        self.withdraw(amount)
        other.deposit(amount)

    def report(self) -> str:
        lines = [f"Account of {self.owner}: {self.balance}"]
        for kind, amount in self.history:
            lines.append(f"  {kind}: {amount}")
        return "\\n".join(lines)
'''


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--file", type=Path, help="default: a class of thirty lines")
    parser.add_argument("--old", default="balance")
    parser.add_argument("--new", default="funds")
    parser.add_argument("--max-tokens", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    text = options.file.read_text() if options.file else _FILE
    task = _TASK.format(old=options.old, new=options.new, text=text)
    models = {kind: Qwen.load(options.model, speculate=kind) for kind in ("off", "auto")}
    speeds: dict[str, list[float]] = {kind: [] for kind in models}
    replies = {}
    for _ in range(options.rounds + 1):  # the first warms up
        for kind, model in models.items():
            done = model.complete_chat(
                [Message("user", task)],
                temperature=0,
                max_tokens=options.max_tokens,
                repetition_penalty=1.0,
            )
            replies[kind] = done.text
            speeds[kind].append((done.usage.completion_tokens - 1) / done.timings.decode_s)
    for kind, found in speeds.items():
        found = sorted(found[1:])
        print(f"guesses {kind}: {statistics.median(found):.1f} tok/s ({found[0]:.1f}-{found[-1]:.1f})")
    gain = statistics.median(speeds["auto"][1:]) / statistics.median(speeds["off"][1:])
    print(f"{gain:.2f}x; the replies are {'equal' if replies['auto'] == replies['off'] else 'DIFFERENT'}")


if __name__ == "__main__":
    main()
