"""As much of JSON Schema as our OpenAPI document uses: what fits a schema, values that do, and values that do not.

The tester that is made for this, schemathesis, brings 26 packages along and judges a refusal by its status. This needs
none, makes the same requests of the same seed, and lets the test ask for more: that a refusal names the parameter that
was made wrong.
"""

import json
import math
import re

KEYWORDS = {
    "$ref", "type", "enum", "const", "oneOf", "allOf", "properties", "required", "additionalProperties",
    "unevaluatedProperties", "propertyNames", "items", "minItems", "maxItems", "minimum", "maximum", "minLength",
    "maxLength", "pattern", "default", "description", "maxProperties", "if", "then",
}  # fmt: skip
TEXTS = ["a", "Hello there", "x " * 40, "0", "null", "Zürich", "日本", "🦀🔥", "a\u0301", "\u202e", "\t\n", '"\\/', "<|im_end|>", "{{ x }}", "\x00", "%s%n", "../../etc"]
STRANGE = [
    None, True, False, 0, -1, 1, 1.5, -0.5, 2**31, 2**63, 2**64, -(2**63) - 1, 10**40, 1e300, "", "x", "1", "true",
    "😀" * 3000, [], [[]], [None], [1.5], ["x", 1], {}, {"x": 1}, {"type": "image_url"}, {"": {}},
]  # fmt: skip


class Schema:
    """The schemas of one document."""

    def __init__(self, document):
        self.document = document

    def resolve(self, schema):
        while isinstance(schema, dict) and "$ref" in schema:
            found = self.document
            for part in schema["$ref"].removeprefix("#/").split("/"):
                found = found[part]
            schema = found
        unread = set(schema) - KEYWORDS
        assert not unread, f"the document uses {unread}, which this test does not know"
        return schema

    def properties(self, schema):
        """Those of an object and of all that it is made of."""
        schema = self.resolve(schema)
        found = dict(schema.get("properties", {}))
        for part in schema.get("allOf", []):
            found.update(self.properties(part))
        return found

    def faults(self, schema, value, path=""):
        """What about a value does not fit."""
        schema = self.resolve(schema)
        kinds = schema.get("type")
        if kinds and not any(is_a(kind, value) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
            return [f"{path}: {short(value)} is not {kinds}"]
        if "enum" in schema and not any(same(value, allowed) for allowed in schema["enum"]):
            return [f"{path}: {short(value)} is not one of {schema['enum']}"]
        if "const" in schema and not same(value, schema["const"]):
            return [f"{path}: {short(value)} is not {schema['const']}"]
        found = [] if within(schema, value) else [f"{path}: {short(value)} is out of bounds"]
        if "oneOf" in schema:
            fitting = sum(not self.faults(part, value, path) for part in schema["oneOf"])
            found += [] if fitting == 1 else [f"{path}: {short(value)} fits {fitting} of the choices"]
        for part in schema.get("allOf", []):
            found += self.faults(part, value, path)
        if "if" in schema and not self.faults(schema["if"], value, path):
            found += self.faults(schema["then"], value, path)
        if isinstance(value, list) and "items" in schema:
            found += [fault for i, item in enumerate(value) for fault in self.faults(schema["items"], item, f"{path}[{i}]")]
        if isinstance(value, dict):
            found += self.object_faults(schema, value, path)
        return found

    def object_faults(self, schema, value, path):
        found = [f"{path}: {name} is missing" for name in schema.get("required", []) if name not in value]
        known = self.properties(schema)
        others = schema.get("unevaluatedProperties", schema.get("additionalProperties", True))
        for name, item in value.items():
            if "propertyNames" in schema:
                found += self.faults(schema["propertyNames"], name, f"{path}.{name}")
            inside = known.get(name, others)
            if inside is False:
                found.append(f"{path}: {name} is unknown")
            elif inside is not True:
                found += self.faults(inside, item, f"{path}.{name}")
        return found

    def make(self, schema, numbers):
        """A value that fits, small where it may be."""
        schema = self.resolve(schema)
        for fixed in ("enum", "const"):
            if fixed in schema:
                return numbers.choice(schema["enum"]) if fixed == "enum" else schema["const"]
        if "oneOf" in schema:
            return self.make(numbers.choice(schema["oneOf"]), numbers)
        kinds = schema.get("type", "object")
        kind = kinds if isinstance(kinds, str) else numbers.choices(kinds, [1 if k == "null" else 6 for k in kinds])[0]
        if kind == "object":
            return self.make_object(schema, numbers)
        if kind == "array":
            least = schema.get("minItems", 0)
            count = min(numbers.randint(least, least + 2), schema.get("maxItems", least + 2))
            return [self.make(schema["items"], numbers) for _ in range(count)]
        if kind == "string":
            if "pattern" in schema:
                return str(numbers.randrange(1000))
            return numbers.choice([text for text in TEXTS if within(schema, text)])
        if kind in ("integer", "number"):
            return number(schema, kind, numbers)
        return None if kind == "null" else numbers.random() < 0.5

    def make_object(self, schema, numbers):
        made = {}
        required = schema.get("required", [])
        share = numbers.choice([0, 0.1, 0.3, 1])
        for name, inside in self.properties(schema).items():
            if name in required or numbers.random() < share:
                made[name] = self.make(inside, numbers)
        others = schema.get("additionalProperties", schema.get("unevaluatedProperties", True))
        if others is not False:
            names = {"type": "string", **schema.get("propertyNames", {})}
            for _ in range(numbers.randint(0, 2)):
                made[self.make(names, numbers)] = self.make({"type": "string"} if others is True else others, numbers)
        return made

    def spoil(self, schema, value, numbers):
        """A copy of an object with one thing changed so that it does not fit, and in which of its properties."""
        for _ in range(50):
            copy = json.loads(json.dumps(value))
            holder, key = numbers.choice(list(places(copy)))
            if isinstance(holder, dict) and numbers.random() < 0.2:
                key = numbers.choice(["colour", "Model", "", "x" * 300, key + " "])
                holder[key] = numbers.choice(STRANGE)
            elif isinstance(holder, dict) and numbers.random() < 0.2:
                del holder[key]
            elif is_a("number", holder[key]) and numbers.random() < 0.5:
                holder[key] = numbers.choice([-1, 1]) * (abs(holder[key]) * 3 + 1)
            else:
                holder[key] = numbers.choice(STRANGE)
            if self.faults(schema, copy):
                both = {name for name in copy if name in value and same(copy[name], value[name])}
                return copy, {*copy, *value} - both | self.conditions(schema)
        raise AssertionError(f"nothing could be spoilt in {short(value)}")

    def conditions(self, schema):
        """Properties that may be wrong only because of what another one is."""
        schema = self.resolve(schema)
        found = set(schema.get("if", {}).get("required", []))
        return found.union(*(self.conditions(part) for part in schema.get("allOf", [])))


def places(value):
    """Every place of a value where something stands, as what holds it and its name or number there."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    for key, item in inside:
        yield value, key
        yield from places(item)


def is_a(kind, value):
    if kind in ("integer", "number") and isinstance(value, bool):
        return False
    kinds = {"integer": int, "number": (int, float), "string": str, "boolean": bool, "null": type(None)}
    return isinstance(value, {**kinds, "array": list, "object": dict}[kind])


def same(a, b):
    return json.dumps(a) == json.dumps(b)


def within(schema, value):
    if is_a("number", value):
        return schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf)
    if isinstance(value, str):
        fits = re.search(schema.get("pattern", ""), value) is not None
        return fits and schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf)
    if isinstance(value, list):
        return schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf)
    return not isinstance(value, dict) or len(value) <= schema.get("maxProperties", math.inf)


def number(schema, kind, numbers):
    """Often one at an end of the range."""
    least, most = schema.get("minimum", -(2**31)), schema.get("maximum", 2**31)
    if numbers.random() < 0.3:
        return numbers.choice([least, most])
    if kind == "integer":
        return numbers.randint(least, min(most, max(least, 0) + 8))
    return round(numbers.uniform(least, most), 3)


def short(value):
    text = json.dumps(value)
    return text if len(text) < 80 else f"{text[:80]}…"
