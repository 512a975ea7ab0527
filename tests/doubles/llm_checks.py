"""Validates chat completion requests as OpenAI's endpoint does: parameters and strict schemas."""

from typing import Any

from llm_model import REASONING

MOST_COMPLETION_TOKENS = 16_384
# JSON Schema keywords that strict mode does not support.
FORBIDDEN = frozenset(
    """allOf not dependentRequired dependentSchemas if then else minLength maxLength
    patternProperties unevaluatedProperties propertyNames minProperties maxProperties
    unevaluatedItems contains minContains maxContains uniqueItems default""".split()
)
_KNOWN = frozenset(
    """model messages response_format max_completion_tokens max_tokens temperature top_p n seed stop
    user metadata store logprobs top_logprobs logit_bias presence_penalty
    frequency_penalty reasoning_effort verbosity service_tier prompt_cache_key safety_identifier
    parallel_tool_calls tools tool_choice modalities""".split()
)
_TYPES = ("string", "number", "boolean", "integer", "object", "array", "null")


def error(
    status: int, message: str, *, code: str | None = None, param: str | None = None, kind: str = ""
) -> tuple[int, dict[str, Any]]:
    """Status and body of an error response."""
    kind = kind or "invalid_request_error"
    body = {"message": message, "type": kind, "param": param, "code": code}
    return status, {"error": body}


def unknown_field(body: dict[str, Any], formats: str, limits: str) -> tuple[int, dict] | None:
    """The error of an endpoint that takes only these response formats and limits of tokens."""
    for name in ("max_completion_tokens", "max_tokens"):
        if name in body and name not in limits.split(","):
            where = {"type": "extra_forbidden", "loc": ["body", name]}
            detail = [where | {"msg": "Extra inputs are not permitted", "input": body[name]}]
            return 422, {"object": "error", "message": {"detail": detail}, "code": None}
    given = (body.get("response_format") or {"type": "none"})["type"]
    if given not in formats.split(","):
        return error(400, "This response_format type is unavailable now")
    return None


def check(body: Any, models: tuple[str, ...], max_context: int) -> tuple[int, dict] | None:
    """Status and body of the error for a chat completion's body; None if the body is valid."""
    if not isinstance(body, dict):
        return error(400, "We could not parse the JSON body of your request.")
    for name in body:
        if name not in _KNOWN:
            return error(400, f"Unrecognized request argument supplied: {name}")
    model = body.get("model")
    if not model:
        return error(400, "you must provide a model parameter")
    if model not in models:
        message = f"The model `{model}` does not exist or you do not have access to it."
        return error(404, message, code="model_not_found")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        return error(400, "Invalid 'messages': empty array.", param="messages")
    for number, message in enumerate(messages):
        roles = ("system", "developer", "user", "assistant")
        if message.get("role") not in roles or not isinstance(message.get("content"), str):
            return error(400, f"Invalid 'messages[{number}]'.", param=f"messages[{number}]")
    wrong = _parameters(body, model)
    if wrong:
        return wrong
    tokens = sum(len(m["content"].encode()) for m in messages) // 4
    if tokens > max_context:
        message = (
            f"This model's maximum context length is {max_context} tokens. However, your messages "
            f"resulted in {tokens} tokens. Please reduce the length of the messages."
        )
        return error(400, message, code="context_length_exceeded", param="messages")
    return _response_format(body.get("response_format"))


def _parameters(body: dict[str, Any], model: str) -> tuple[int, dict] | None:
    thinks = REASONING.match(model)
    if thinks and "max_tokens" in body:
        message = (
            "Unsupported parameter: 'max_tokens' is not supported with this model. "
            "Use 'max_completion_tokens' instead."
        )
        return error(400, message, code="unsupported_parameter", param="max_tokens")
    if thinks and body.get("temperature", 1) != 1:
        message = "Unsupported parameter: 'temperature' is not supported with this model."
        return error(400, message, code="unsupported_parameter", param="temperature")
    if not thinks and "reasoning_effort" in body:
        return error(400, "Unrecognized request argument supplied: reasoning_effort")
    temperature = body.get("temperature", 1)
    if not isinstance(temperature, int | float) or not 0 <= temperature <= 2:
        message = f"Invalid 'temperature': {temperature!r} is not between 0 and 2."
        return error(400, message, param="temperature")
    for name in ("max_completion_tokens", "max_tokens"):
        most = body.get(name, 1)
        if not isinstance(most, int) or most < 1:
            return error(400, f"Invalid '{name}': expected a positive integer.", param=name)
        if most > MOST_COMPLETION_TOKENS:
            message = (
                f"max_tokens is too large: {most}. This model supports at most "
                f"{MOST_COMPLETION_TOKENS} completion tokens, whereas you provided {most}."
            )
            return error(400, message, code="invalid_value", param=name)
    return None


def _response_format(given: Any) -> tuple[int, dict] | None:
    if given is None:
        return None
    if not isinstance(given, dict) or given.get("type") not in (
        *("text", "json_object", "json_schema"),
    ):
        return error(400, "Invalid 'response_format.type'.", param="response_format.type")
    if given["type"] != "json_schema":
        return None
    schema = given.get("json_schema") or {}
    name = schema.get("name")
    if not name:
        where = "response_format.json_schema.name"
        return error(400, f"Missing required parameter: '{where}'.", param=where)
    if schema.get("strict") is not True:
        return None
    wrong = _strict(schema.get("schema") or {}, (), root=True)
    if not wrong:
        return None
    message = f"Invalid schema for response_format '{name}': {wrong}"
    return error(400, message, param="response_format")


def _strict(schema: dict[str, Any], where: tuple[str, ...], *, root: bool = False) -> str:
    """What strict mode refuses in a schema; "" for nothing."""
    context = f"In context={where!r}, "
    if root and (schema.get("type") != "object" or "anyOf" in schema):
        return "schema must be a JSON Schema of 'type: \"object\"', got 'type: \"None\"'."
    for word in schema:
        if word in FORBIDDEN:
            return f"{context}'{word}' is not permitted."
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    if not types and not {"anyOf", "$ref", "enum", "const"} & schema.keys():
        return f"{context}schema must have a 'type' key."
    for one in types:
        if one not in _TYPES:
            return f"{context}'{one}' is not a type."
    if "object" in types:
        if schema.get("additionalProperties") is not False:
            return f"{context}'additionalProperties' is required to be supplied and to be false."
        fields = schema.get("properties", {})
        missing = [name for name in fields if name not in schema.get("required", [])]
        if missing or set(schema.get("required", [])) - fields.keys():
            return (
                f"{context}'required' is required to be supplied and to be an array including "
                f"every key in properties. Missing '{(missing or ['?'])[0]}'."
            )
        for name, part in fields.items():
            if wrong := _strict(part, (*where, "properties", name)):
                return wrong
    if "array" in types and (wrong := _strict(schema.get("items", {}), (*where, "items"))):
        return wrong
    for number, part in enumerate(schema.get("anyOf", ())):
        if wrong := _strict(part, (*where, "anyOf", str(number))):
            return wrong
    for name, part in schema.get("$defs", {}).items():
        if wrong := _strict(part, (*where, "$defs", name)):
            return wrong
    return ""
