"""Tool use in the ReAct format, the way the 2023 models were trained on it (reference: tools sections 1-2).

Turns a conversation with functions into plain user and assistant turns, and a reply back into a function
call. Knows no HTTP and runs no tool.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qwenkit.core import DEFAULT_SYSTEM, History, Message, RequestError, ToolCall

STOPS = ("Observation:",)
"""Where the model's part of a step ends and the tool's begins."""

_SCAFFOLD = """Answer the following questions as best you can. You have access to the following {noun}:

{tools}

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [{names}]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!

Question: {query}"""

_TOOL = (
    "{model_name}: Call this tool to interact with the {human_name} API. "
    "What is the {human_name} API useful for? {description} Parameters: {parameters}"
)
_ARGS_FORMATS = {
    "json": " Format the arguments as a JSON object.",
    "code": " Enclose the code within triple backticks (`) at the beginning and end of the code.",
}


@dataclass(frozen=True)
class Conversation:
    """Plain turns for chatml. `query` is None when the last answer in `history` is to be continued."""

    system: str
    history: History
    query: str | None


def react_prompt(
    query: str,
    functions: Sequence[Mapping[str, Any]],
    *,
    noun: Literal["APIs", "tools"] = "APIs",
    args_format: Literal["json", "code"] | None = None,
) -> str:
    """The scaffold around `query`, byte for byte that of the training data.

    functions: OpenAI's {name, description, parameters}; Qwen's own name_for_model, name_for_human and
        description_for_model take precedence where given.
    noun: "APIs" (server and training data) or "tools" (tutorial, code interpreter; names without a space
        after the comma). args_format: append the hint how to write arguments; the server appends none.

    Raises RequestError for a function without name or parameters.
    """
    described, names = [], []
    for i, function in enumerate(functions):
        name = function.get("name_for_model") or function.get("name")
        if not isinstance(name, str) or not name or "parameters" not in function:
            raise RequestError(
                f"functions[{i}] has no {'parameters' if name else 'name'}.",
                "Each needs a name, a description and parameters (a JSON schema, may be {}).",
            )
        names.append(name)
        block = _TOOL.format(
            model_name=name,
            human_name=function.get("name_for_human") or function.get("name") or name,
            description=function.get("description_for_model") or function.get("description") or "",
            parameters=json.dumps(function["parameters"], ensure_ascii=False),
        )
        described.append(block + (_ARGS_FORMATS[args_format] if args_format else ""))
    return _SCAFFOLD.format(
        noun=noun,
        tools="\n\n".join(described),
        names=(", " if noun == "APIs" else ",").join(names),
        query=query,
    )


def parse_messages(
    messages: Sequence[Message],
    functions: Sequence[Mapping[str, Any]] | None = None,
    *,
    default_system: str = DEFAULT_SYSTEM,
) -> Conversation:
    """Plain turns from messages that may hold function calls and their results.

    Contents lose leading newlines and trailing white space, as in the training data. Raises RequestError,
    whose `problem` is the original server's text, for an order of roles that makes no conversation.
    """
    if all(message.role != "user" for message in messages):
        raise _invalid("Expecting at least one user message.")
    system = default_system
    if messages[0].role == "system":
        system = _trim(messages[0].content)
        messages = messages[1:]
    turns: list[tuple[str, str]] = []  # (role, content), user and assistant only
    for i, message in enumerate(messages):
        content = _trim(message.content)
        before = turns[-1][0] if turns else None
        if message.role == "user":
            turns.append(("user", content))
        elif message.role == "assistant":
            if before is None:
                raise _invalid("Expecting role user before role assistant.")
            content = _assistant_text(i, content, message.tool_calls, bool(functions))
            if before == "assistant":
                content = f"{turns.pop()[1]}\n{content}"
            turns.append(("assistant", content))
        elif message.role in ("function", "tool"):
            if before != "assistant":
                raise _invalid("Expecting role assistant before role function.")
            content = f"{turns.pop()[1]}\nObservation: {content}"
            turns.append(("assistant", content + ("\nThought:" if i == len(messages) - 1 else "")))
        else:
            raise _invalid(f"Incorrect role {message.role}.")
    query = turns.pop()[1] if turns[-1][0] == "user" else None
    if len(turns) % 2:
        raise RequestError("Invalid request", "User and assistant messages must take turns.")
    history: History = []
    for (asker, asked), (answerer, answered) in zip(turns[::2], turns[1::2], strict=True):
        if (asker, answerer) != ("user", "assistant"):
            raise _invalid("Expecting exactly one user (or function) role before every assistant role.")
        history.append((_trim(asked), _trim(answered)))
    if functions:
        # With earlier turns the scaffold goes to the last of them: so the training data has it.
        if history:
            history[-1] = (react_prompt(history[-1][0], functions), history[-1][1])
        elif query is not None:
            query = react_prompt(query, functions)
    return Conversation(system, history, query)


def parse_response(reply: str) -> Message:
    """The assistant message in a reply: a tool call with the thought before it, or the final answer.

    The first call counts; a reply without one gives the text after the last "Final Answer: ". Arguments are
    what the model wrote, not checked to be JSON.
    """
    action = reply.find("\nAction:")
    action_input = reply.find("\nAction Input:")
    if 0 <= action < action_input:
        observation = reply.find("\nObservation:", action_input)
        arguments = reply[action_input + len("\nAction Input:") : observation if observation >= 0 else None]
        name = reply[action + len("\nAction:") : action_input]
        _, thought, after = reply[:action].partition("Thought: ")
        content = after if thought else reply[:action]
        return Message("assistant", content.strip(), (ToolCall(name.strip(), arguments.strip()),))
    _, _, answer = reply.rpartition("\nFinal Answer: ")
    return Message("assistant", answer)


def _assistant_text(i: int, content: str, calls: Sequence[ToolCall], with_functions: bool) -> str:
    if not calls:
        return (
            f"Thought: I now know the final answer.\nFinal Answer: {content}" if with_functions else content
        )
    if len(calls) > 1:
        raise RequestError(
            f"Message {i} has {len(calls)} tool calls; the ReAct format has one a step.",
            "Send each call with its result in a message of its own.",
        )
    thought = content if content.startswith("Thought:") else f"Thought: {content}"
    return f"{thought}\nAction: {calls[0].name}\nAction Input: {calls[0].arguments}"


def _invalid(problem: str) -> RequestError:
    return RequestError(f"Invalid request: {problem}", "Check the order of roles in `messages`.")


def _trim(text: str) -> str:
    return text.lstrip("\n").rstrip()
