"""The engines that can run beside ours: where their python is, what they load, what they cannot do."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenkit.bench.peers.files import Source
from qwenkit.bench.peers.process import EngineProcess
from qwenkit.bench.rounds import Contender
from qwenkit.core import QwenkitError, RequestError, UnsupportedError

_HERE = Path(__file__).parent
_CONVERT_S = 7200.0
_GGUF = {"bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}


@dataclass(frozen=True)
class Peer:
    """An engine and how it is started.

    key: how it is chosen, an engine's second setting after a colon; module: what its python must have;
    adapter: file beside this one; files: "gguf" or "folder", what it is given; weights: the formats it runs;
    options: what its job adds.
    """

    key: str
    name: str
    module: str
    adapter: str
    files: str
    weights: tuple[str, ...]
    options: Mapping[str, Any]

    @property
    def variable(self) -> str:
        """The environment variable that names its python."""
        engine = self.key.partition(":")[0]
        return f"QWENKIT_PEER_{engine.upper().replace('-', '_')}_PYTHON"

    def python(self, environment: Mapping[str, str]) -> str:
        """The interpreter to run it in. Raises UnsupportedError where it is not installed."""
        chosen = environment.get(self.variable)
        if chosen:
            return chosen
        if importlib.util.find_spec(self.module) is None:
            raise UnsupportedError(
                f"{self.name} is not installed here.",
                f"Set {self.variable} to a python that has {self.module}.",
            )
        return sys.executable

    def model(self, source: Source, weights: str, python: str) -> tuple[Path, int | None]:
        """Its model file or folder and the bytes a token of it reads, None if the adapter tells."""
        if weights not in self.weights:
            runs = " or ".join(self.weights)
            raise UnsupportedError(f"{self.name} is measured with {runs} weights only, not {weights}.")
        if self.files == "gguf":
            path = source.gguf(_GGUF[weights])
            return path, source.read_bytes(path)
        if self.module == "openvino_genai":
            return source.converted(f"openvino-{weights}", self._converter(source, weights, python)), None
        path = source.gptq() if weights == "int4" else source.folder()
        return path, source.read_bytes(path)

    def _converter(self, source: Source, weights: str, python: str) -> Callable[[Path], None]:
        def convert(place: Path) -> None:
            with EngineProcess(self.name, python, _HERE / self.adapter, {}) as process:
                where = {"source": str(source.folder()), "target": str(place)}
                process.call("prepare", timeout_s=_CONVERT_S, weights=weights, **where)

        return convert


PEERS = (
    Peer("openvino", "OpenVINO GenAI", "openvino_genai", "openvino.py", "folder",
         ("bf16", "int8", "int4"), {"setting": "bf16"}),
    Peer("openvino:int8", "OpenVINO GenAI, int8 activations", "openvino_genai", "openvino.py", "folder",
         ("int8", "int4"), {"setting": "int8"}),
    Peer("llama-cpp", "llama.cpp", "llama_cpp", "llama_cpp.py", "gguf",
         ("bf16", "int8", "int4"), {"library": "llama_cpp"}),
    Peer("ik-llama-cpp", "ik_llama.cpp", "ik_llama_cpp", "llama_cpp.py", "gguf",
         ("bf16", "int8", "int4"), {"library": "ik_llama_cpp"}),
    Peer("transformers", "transformers", "transformers", "transformers.py", "folder", ("bf16",), {}),
    Peer("vllm", "vLLM", "vllm", "vllm.py", "folder", ("bf16", "int4"), {}),
)  # fmt: skip


def choose(keys: Sequence[str]) -> list[Peer]:
    """The peers called so, all for "all". Raises RequestError for an unknown one."""
    known = {peer.key: peer for peer in PEERS}
    if "all" in keys:
        return list(PEERS)
    for key in keys:
        if key not in known:
            raise RequestError(f"There is no peer called {key!r}.", f"Known are {', '.join(known)}, and all.")
    return [known[key] for key in dict.fromkeys(keys)]


def contenders(
    peers: Sequence[Peer], source: Source, job: Mapping[str, Any], environment: Mapping[str, str]
) -> tuple[list[Contender], dict[str, str]]:
    """What can run, its model files made; and for the others, by name, the reason why not.

    job: what qwenkit itself is asked. Weights left to the checkpoint are int4 for others if it is quantized.
    """
    weights = job["weights"] or ("int4" if source.quantized else "bf16")
    threads = str(job["threads"])
    variables = {"OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    able, reasons = [], {}
    for peer in peers:
        try:
            python = peer.python(environment)
            path, nbytes = peer.model(source, weights, python)
        except QwenkitError as error:
            reasons[peer.name] = f"{error.problem} {error.remedy}".strip()
            continue
        asked = {
            **job, **peer.options, "model": str(path), "weights": weights,
            "vocabulary": source.config.vocab_size, "kv_bytes": source.config.kv_bytes_per_token(),
        }  # fmt: skip
        facts = {} if nbytes is None else {"weight_bytes": nbytes}
        able.append(Contender(peer.name, python, _HERE / peer.adapter, asked, variables, facts))
    return able, reasons
