"""Small schemas with the features of those that public MCP servers have for their tools; name to schema.

Beside each: arguments that break what decoding leaves out, or None where it follows everything.
"""

TEXT = {"type": "string"}
DRAFT7, DRAFT2020 = "http://json-schema.org/draft-07/schema#", "https://json-schema.org/draft/2020-12/schema"


def thing(properties, *required, **more):
    return {"type": "object", "properties": properties, "required": list(required), **more}


WILD = {
    "filesystem edit": (
        thing(
            {
                "path": {**TEXT, "format": "path"},
                "edits": {"type": "array", "items": thing({"oldText": TEXT, "newText": TEXT}, "oldText", "newText")},
                "dryRun": {"type": "boolean", "default": False, "description": "Preview"},
            },
            "path",
            "edits",
            additionalProperties=False,
            **{"$schema": DRAFT7},
        ),
        None,
    ),
    "filesystem roots": ({"type": "object", "properties": {}, "$schema": DRAFT7, "additionalProperties": False}, None),
    "git log": (
        thing(
            {
                "repo_path": {**TEXT, "title": "Repo Path", "format": "directory-path"},
                "max_count": {"default": 10, "type": "integer", "title": "Max Count"},
                "since": {"anyOf": [TEXT, {"type": "null"}], "default": None},
            },
            "repo_path",
            title="GitLog",
        ),
        None,
    ),
    "git add": (
        thing({"files": {"type": "array", "items": TEXT, "uniqueItems": True}}, "files"),
        {"files": ["a", "a"]},
    ),
    "github issue": (
        thing(
            {
                "issue_number": {"type": "number"},
                "state": {"enum": ["open", "closed"], "type": "string"},
                "labels": {"type": "array", "items": TEXT, "uniqueItems": True, "maxItems": 4},
                "assignee": {"type": ["string", "null"]},
                "token": {**TEXT, "format": "password", "writeOnly": True},
            },
            "issue_number",
        ),
        {"issue_number": 1, "labels": ["bug", "bug"]},
    ),
    "github merge": (
        thing(
            {"method": {"const": "squash"}, "sha": {**TEXT, "pattern": "^(?!0+$)[0-9a-f]{4}$"}, "body": TEXT},
            "sha",
        ),
        {"sha": "0000"},
    ),
    "slack history": (
        thing({"channel_id": {**TEXT, "pattern": "^[CG][A-Z0-9]{4}$"}, "limit": {"type": "integer", "maximum": 99}}),
        None,
    ),
    "slack post": (
        thing(
            {"text": TEXT, "thread_ts": TEXT, "reply_broadcast": {"type": "boolean"}},
            "text",
            dependentRequired={"reply_broadcast": ["thread_ts"]},
        ),
        {"text": "hi", "reply_broadcast": True},
    ),
    "postgres query": (
        thing({"sql": TEXT, "params": {"type": "array", "items": {"type": ["string", "number", "null"]}}}),
        None,
    ),
    "puppeteer launch": (
        thing(
            {
                "url": {**TEXT, "format": "uri"},
                "launchOptions": {"type": ["object", "null"], "description": "free"},
                "env": {"type": "object", "propertyNames": {"pattern": "^[A-Z]+$"}, "additionalProperties": TEXT},
                "encoded": {**TEXT, "format": "binary", "contentEncoding": "base64"},
            }
        ),
        None,
    ),
    "puppeteer click": (
        thing(
            {"selector": TEXT, "x": {"type": "integer"}, "y": {"type": "integer"}},
            oneOf=[{"required": ["selector"]}, {"required": ["x", "y"]}],
        ),
        {"selector": "a", "x": 1, "y": 2},
    ),
    "fetch": (
        thing(
            {
                "url": {**TEXT, "format": "uri", "minLength": 1},
                "max_length": {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 1000000, "default": 5000},
                "headers": {"type": "object", "additionalProperties": TEXT, "default": {}},
            },
            "url",
        ),
        None,
    ),
    "memory create": (
        {
            **thing(
                {"entities": {"type": "array", "items": {"$ref": "#/definitions/Entity"}, "minItems": 1}}, "entities"
            ),
            "definitions": {"Entity": thing({"name": TEXT, "observations": {"type": "array", "items": TEXT}}, "name")},
            "$schema": DRAFT7,
        },
        None,
    ),
    "memory tag": (
        thing({"tags": {"type": "array", "items": TEXT, "contains": {"const": "memory"}, "minContains": 1}}, "tags"),
        {"tags": ["other"]},
    ),
    "sequential thinking": (
        thing(
            {
                "thought": TEXT,
                "thoughtNumber": {"type": "integer", "minimum": 1, "maximum": 9007199254740991},
                "isRevision": {"anyOf": [{"type": "boolean"}, {"enum": ["true", "false"]}]},
                "revisesThought": {"type": "integer", "minimum": 1},
            },
            "thought",
            "thoughtNumber",
            dependencies={"revisesThought": ["isRevision"]},
            **{"$schema": DRAFT7},
        ),
        {"thought": "a", "thoughtNumber": 1, "revisesThought": 1},
    ),
    "time convert": (
        thing(
            {"time": {**TEXT, "pattern": "^([01]\\d|2[0-3]):[0-5]\\d$"}, "zone": {**TEXT, "format": "timezone"}}, "time"
        ),
        None,
    ),
    "brave search": (
        thing(
            {
                "query": {**TEXT, "maxLength": 400},
                "count": {"type": "number", "default": 10, "minimum": 1, "maximum": 20},
                "freshness": {"enum": ["pd", "pw", 7, None]},
                "site": {"not": {"type": "null"}},
            },
            "query",
        ),
        {"query": "a", "site": None},
    ),
    "notion page": (
        {
            **thing(
                {
                    "parent": {"oneOf": [{"$ref": "#/$defs/page"}, {"$ref": "#/$defs/database"}]},
                    "properties": {"type": "object", "additionalProperties": True},
                    "children": {"type": "array", "items": {"type": "array", "items": TEXT}},
                    "id": {**TEXT, "format": "uuid4"},
                },
                "parent",
                additionalProperties=True,
            ),
            "$defs": {
                "page": thing({"page_id": {**TEXT, "format": "uuid"}, "type": {"const": "page"}}, "page_id", "type"),
                "database": thing({"database_id": TEXT, "type": {"const": "database"}}, "database_id", "type"),
            },
            "$schema": DRAFT2020,
        },
        None,
    ),
    "network scan": (
        thing({"net": {**TEXT, "format": "ipv4network"}, "ports": {"type": "object", "minProperties": 3}}, "ports"),
        {"ports": {"a": 1}},
    ),
    "conditional": (
        thing(
            {"kind": {"enum": ["a", "b"]}, "b": TEXT},
            "kind",
            **{"if": {"required": ["b"]}, "then": {"properties": {"kind": {"const": "b"}}}},
        ),
        {"kind": "a", "b": "x"},
    ),
}
