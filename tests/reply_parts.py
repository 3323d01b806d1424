"""Tools, schemas and calls that tests of answers share."""

import json


def tool(name, properties=None, **more):
    parameters = {"type": "object", "properties": properties or {}, "required": list(properties or {}), **more}
    return {"type": "function", "function": {"name": name, "description": f"{name} it", "parameters": parameters}}


ADD = tool("add", {"x": {"type": "integer"}})
NOW = tool("now")
SAY = tool('say 你"好\\', {"text": {"type": "string"}})
TREE = tool(
    "plant",
    {"tree": {"$ref": "#/$defs/Tree"}},
    **{"$defs": {"Tree": {"type": "object", "properties": {"left": {"$ref": "#/$defs/Tree"}}, "required": []}}},
)
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
OBJECT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}


def call(name, **arguments):
    said = {"name": name, "arguments": arguments}
    return f"<tool_call>\n{json.dumps(said, ensure_ascii=False)}\n</tool_call>"


TOOLS = [ADD, NOW, SAY, TREE]
NAMES = ["add", "now"]
